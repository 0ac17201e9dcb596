"""Calls of an implementation with feature maps in any order of dimensions."""

from typing import Any

from jax import Array


def forward(x: Array, kernel_hwc: Array, module: Any, order: str) -> Array:
  """`module.forward`, with transposes where `order` is not `module.ORDER`."""
  y = module.forward(_transpose(x, order, module.ORDER), kernel_hwc)
  return _transpose(y, module.ORDER, order)


def backward(
  x: Array, kernel_hwc: Array, y_grad: Array, module: Any, order: str
) -> tuple[Array, Array]:
  """`module.backward`, likewise."""
  x, y_grad = (_transpose(array, order, module.ORDER) for array in (x, y_grad))
  x_grad, kernel_grad = module.backward(x, kernel_hwc, y_grad)
  return _transpose(x_grad, module.ORDER, order), kernel_grad


def _transpose(x: Array, source: str, target: str) -> Array:
  return x.transpose([source.index(letter) for letter in target])
