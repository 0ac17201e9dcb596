"""Depthwise convolution for NVIDIA GPUs: the kernels of `pallas_toeplitz`, for bfloat16.

Pallas's Triton backend is deprecated: since 0.11, JAX emits a DeprecationWarning when this is
lowered for a GPU.
"""

from typing import Any

from jax import Array
import jax.numpy as jnp

from convmixer_jax.depthwise import pallas_toeplitz

ORDER = "cbhw"


def forward(x_cbhw: Array, kernel_hwc: Array, *, interpret: bool = False) -> Array:
  """The convolution of `x_cbhw`, in its shape and dtype; `interpret` runs it on CPU, slowly."""
  low_h, low_w = ((size - 1) // 2 for size in kernel_hwc.shape[:2])
  return pallas_toeplitz.correlate(x_cbhw, kernel_hwc, low=(low_h, low_w), interpret=interpret)


def backward(
  x_cbhw: Array, kernel_hwc: Array, y_grad: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
  """The gradients with respect to `x_cbhw` and `kernel_hwc`, in their dtypes."""
  low_h, low_w = (size // 2 for size in kernel_hwc.shape[:2])
  x_grad = pallas_toeplitz.correlate(
    y_grad, kernel_hwc[::-1, ::-1], low=(low_h, low_w), interpret=interpret
  )
  kernel_grad = pallas_toeplitz.kernel_gradient(
    x_cbhw, y_grad, kernel_hwc.shape[:2], interpret=interpret
  )
  return x_grad, kernel_grad.astype(kernel_hwc.dtype)


def is_supported(x_cbhw: Any, kernel_hwc: Any) -> bool:
  """Whether the kernels support feature maps and kernels of these types."""
  return (
    x_cbhw.dtype == jnp.bfloat16  # products of float32 feature maps would lose precision
    and all(isinstance(size, int) and size > 0 for size in x_cbhw.shape)  # not symbolic
    and all(8 <= size <= 64 for size in x_cbhw.shape[2:])
    and all(size <= 15 for size in kernel_hwc.shape[:2])
  )
