"""Writes `logits_*.npz`: PyTorch's logits, gradients and running statistics for fixed weights.

Run from the repository's root after `pip install -e '.[torch]'`:
  python tests/golden/make_logits.py
"""

import pathlib

import numpy as np
import torch
from torch_convmixer import conv_mixer, flatten, to_variables

# name: dim, depth, kernel_size, patch_size, num_classes, activation
MODELS = {
  "gelu_odd": (12, 2, 5, 2, 7, "gelu"),
  "relu_odd": (12, 2, 3, 2, 7, "relu"),
  "gelu_even": (12, 2, 4, 1, 7, "gelu"),
}


def main() -> None:
  """One file for each model."""
  for seed, (name, sizes) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    model = conv_mixer(*sizes)
    with torch.no_grad():  # statistics and scales that are not their initial values
      for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
      for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
          module.running_mean.normal_(0.2, 0.3)
          module.running_var.uniform_(0.5, 2)
    image = torch.randn(4, 3, 8, 12)
    label = torch.tensor([0, 3, 6, 3])
    arrays = {"image": image.numpy().transpose(0, 2, 3, 1), "label": label.numpy().astype(np.int32)}
    arrays |= flatten(to_variables(model), "before/")
    arrays["eval_logits"] = model.eval()(image).detach().numpy()
    logits = model.train()(image)
    arrays["train_logits"] = logits.detach().numpy()
    torch.nn.functional.cross_entropy(logits, label).backward()
    arrays |= flatten({"batch_stats": to_variables(model)["batch_stats"]}, "after/")
    with torch.no_grad():
      for parameter in model.parameters():
        parameter.copy_(parameter.grad)
    arrays |= flatten({"params": to_variables(model)["params"]}, "gradient/")
    np.savez_compressed(pathlib.Path(__file__).with_name(f"logits_{name}.npz"), **arrays)


if __name__ == "__main__":
  main()
