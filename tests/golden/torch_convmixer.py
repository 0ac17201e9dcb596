"""The reference: ConvMixer in PyTorch, and the way of its weights into our parameters.

Used by the scripts that write golden files and by benchmarks; tests need no torch.
"""

import numpy as np
import torch
from torch import nn


class Residual(nn.Module):
  """Adds a branch to its input."""

  def __init__(self, branch: nn.Module):
    super().__init__()
    self.branch = branch

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """x + branch(x)."""
    return x + self.branch(x)


def conv_mixer(
  dim: int,
  depth: int,
  kernel_size: int,
  patch_size: int,
  num_classes: int,
  activation: str = "gelu",
  channels: int = 3,
) -> nn.Sequential:
  """The network in the order of the authors' `convmixer.py`: convolution, activation, norm."""

  def then_norm(conv: nn.Module) -> nn.Sequential:
    act = nn.GELU() if activation == "gelu" else nn.ReLU()
    return nn.Sequential(conv, act, nn.BatchNorm2d(dim))

  layers = [then_norm(nn.Conv2d(channels, dim, patch_size, stride=patch_size))]
  for _ in range(depth):
    depthwise = nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same")
    layers += [Residual(then_norm(depthwise)), then_norm(nn.Conv2d(dim, dim, 1))]
  head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, num_classes)]
  return nn.Sequential(*layers, *head)


def to_variables(model: nn.Sequential) -> dict:
  """The model's weights and running statistics as our {"params", "batch_stats"} of NumPy arrays."""
  params, stats = {}, {}

  def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().copy()

  def conv(module: nn.Conv2d) -> dict:
    return {"kernel": array(module.weight).transpose(2, 3, 1, 0), "bias": array(module.bias)}

  def norm(module: nn.BatchNorm2d) -> tuple[dict, dict]:
    return (
      {"scale": array(module.weight), "bias": array(module.bias)},
      {"mean": array(module.running_mean), "var": array(module.running_var)},
    )

  params["stem"] = conv(model[0][0])
  params["stem_norm"], stats["stem_norm"] = norm(model[0][2])
  depth = (len(model) - 4) // 2
  for i in range(depth):
    block_params, block_stats = params.setdefault(f"blocks_{i}", {}), {}
    for name, layer in (("depthwise", model[1 + 2 * i].branch), ("pointwise", model[2 + 2 * i])):
      block_params[name] = conv(layer[0])
      block_params[f"{name}_norm"], block_stats[f"{name}_norm"] = norm(layer[2])
    stats[f"blocks_{i}"] = block_stats
  params["head"] = {"kernel": array(model[-1].weight).T, "bias": array(model[-1].bias)}
  return {"params": params, "batch_stats": stats}


def flatten(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
  """Nested dictionaries as {"a/b/c": array}, for `np.savez`."""
  flat = {}
  for name, value in tree.items():
    flat |= (
      flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    )
  return flat
