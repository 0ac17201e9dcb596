"""Writes `pretrained_*`: weights as PyTorch writes them, and PyTorch's logits for them.

Run from the repository's root after `pip install -e '.[test,torch]'`:
  python tests/golden/make_pretrained.py
"""

import argparse
import pathlib

import numpy as np
from safetensors.torch import save_file
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent
# name: dim, depth, kernel_size, patch_size, num_classes, activation
MODELS = {
  "gelu_odd": (12, 2, 5, 2, 7, nn.GELU),
  "relu_odd": (8, 3, 3, 2, 7, nn.ReLU),
  "gelu_even": (12, 2, 4, 1, 7, nn.GELU),
}


class Residual(nn.Module):
  """fn(x) + x; the authors' and timm's name of the branch is part of the weights' names."""

  def __init__(self, fn: nn.Module):
    super().__init__()
    self.fn = fn

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Same shape."""
    return self.fn(x) + x


def conv_mixer(dim, depth, kernel_size, patch_size, num_classes, activation) -> nn.Sequential:
  """The network with the modules in the places of the authors' `convmixer.py`."""
  blocks = []
  for _ in range(depth):
    depthwise = nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same")
    spatial = Residual(nn.Sequential(depthwise, activation(), nn.BatchNorm2d(dim)))
    pointwise = nn.Conv2d(dim, dim, 1)
    blocks.append(nn.Sequential(spatial, pointwise, activation(), nn.BatchNorm2d(dim)))
  stem = nn.Conv2d(3, dim, patch_size, stride=patch_size)
  head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, num_classes)
  return nn.Sequential(stem, activation(), nn.BatchNorm2d(dim), *blocks, *head)


def as_timm(model: nn.Sequential) -> nn.ModuleDict:
  """The same modules, in the places of timm's `convmixer.py`."""
  parts = {"stem": model[:3], "blocks": nn.Sequential(*model[3:-3]), "head": model[-1]}
  return nn.ModuleDict(parts)


def main() -> None:
  """For each model a file in each layout and the logits; and a training's checkpoint."""
  for seed, (name, sizes) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    model = conv_mixer(*sizes)
    with torch.no_grad():  # scales and statistics that are not their initial values
      for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
      for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
          module.running_mean.normal_(0.2, 0.3)
          module.running_var.uniform_(0.5, 2)
    torch.save(model.state_dict(), HERE / f"pretrained_{name}.pth")
    timm_weights = as_timm(model).state_dict()
    save_file(timm_weights, HERE / f"pretrained_{name}.safetensors", {"format": "pt"})
    if name == "gelu_odd":
      checkpoint = {
        "epoch": 3,
        "arch": "convmixer",
        "args": argparse.Namespace(lr=0.01, opt="adamw"),
        "state_dict": {key: torch.zeros_like(value) for key, value in timm_weights.items()},
        "state_dict_ema": {f"module.{key}": value for key, value in timm_weights.items()},
        "metric": 81.5,
      }
      torch.save(checkpoint, HERE / "pretrained_training.pth.tar")
    image = torch.randn(4, 3, 8, 12)
    arrays = {"image": image.permute(0, 2, 3, 1), "eval_logits": model.eval()(image)}
    arrays["train_logits"] = model.train()(image)
    arrays = {key: value.detach().numpy() for key, value in arrays.items()}
    np.savez_compressed(HERE / f"pretrained_{name}.npz", **arrays)


if __name__ == "__main__":
  main()
