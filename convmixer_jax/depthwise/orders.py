"""Calls of an implementation with feature maps in any order of dimensions.

An order is a string of letters: b batch, h height, w width, c channels, and p for the positions,
height and width merged. Merged positions need the `grid`, the height and width. Implementations get
and return maps in their own `ORDER`, but always with separate height and width.
"""

import math
from typing import Any

from jax import Array

Grid = tuple[int, int] | None


def forward(x: Array, kernel_hwc: Array, module: Any, order: str, grid: Grid = None) -> Array:
  """`module.forward`, with transposes where `order` is not `module.ORDER`."""
  own = module.ORDER.replace("p", "hw")
  y = module.forward(reorder(x, order, own, grid), kernel_hwc)
  return reorder(y, own, order, grid)


def backward(
  x: Array, kernel_hwc: Array, y_grad: Array, module: Any, order: str, grid: Grid = None
) -> tuple[Array, Array]:
  """`module.backward`, likewise."""
  own = module.ORDER.replace("p", "hw")
  x, y_grad = (reorder(array, order, own, grid) for array in (x, y_grad))
  x_grad, kernel_grad = module.backward(x, kernel_hwc, y_grad)
  return reorder(x_grad, own, order, grid), kernel_grad


def reorder(x: Array, source: str, target: str, grid: Grid = None) -> Array:
  """`x` with its dimensions in another order."""
  if "p" in source and grid is not None:
    x = _reshape(x, source, p=grid)
  before, after = source.replace("p", "hw"), target.replace("p", "hw")
  x = x.transpose([before.index(letter) for letter in after])
  if "p" in target and grid is not None:
    sizes = dict(zip(after, x.shape, strict=True))
    x = x.reshape([math.prod(grid) if letter == "p" else sizes[letter] for letter in target])
  return x


def _reshape(x: Array, order: str, p: tuple[int, int]) -> Array:
  at = order.index("p")
  return x.reshape(*x.shape[:at], *p, *x.shape[at + 1 :])
