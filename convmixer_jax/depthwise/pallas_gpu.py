"""Depthwise convolution for NVIDIA GPUs as banded matrix products on tensor cores, in Pallas.

Feature maps are channel-major and bfloat16; others fall back to `xla`, with one log line per shape.
The kernels are in `pallas_toeplitz`. On CPU they are interpreted, which is slow and meant for
tests. Pallas's Triton backend is deprecated: since 0.11, JAX emits a DeprecationWarning when this
is lowered for a GPU.
"""

from collections.abc import Callable
import functools
import logging
from typing import Any

import jax
from jax import Array, lax
import jax.numpy as jnp

from convmixer_jax.depthwise import xla

ORDER = "cbhw"

_log = logging.getLogger(__name__)


def forward(x_cbhw: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_cbhw`, in its shape and dtype."""
  if not _is_supported(x_cbhw, kernel_hwc):
    return _xla_forward(x_cbhw, kernel_hwc)

  def kernel(x_cbhw: Array, kernel_hwc: Array, interpret: bool) -> Array:
    from convmixer_jax.depthwise import pallas_toeplitz  # imports Pallas: up to 0.4 s

    low_h, low_w = ((size - 1) // 2 for size in kernel_hwc.shape[:2])
    return pallas_toeplitz.correlate(x_cbhw, kernel_hwc, low=(low_h, low_w), interpret=interpret)

  return _on_platform(kernel, _xla_forward, x_cbhw, kernel_hwc)


def backward(x_cbhw: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_cbhw` and `kernel_hwc`, in their dtypes."""
  if not _is_supported(x_cbhw, kernel_hwc):
    return _xla_backward(x_cbhw, kernel_hwc, y_grad)

  def kernel(
    x_cbhw: Array, kernel_hwc: Array, y_grad: Array, interpret: bool
  ) -> tuple[Array, Array]:
    from convmixer_jax.depthwise import pallas_toeplitz  # imports Pallas: up to 0.4 s

    low_h, low_w = (size // 2 for size in kernel_hwc.shape[:2])
    x_grad = pallas_toeplitz.correlate(
      y_grad, kernel_hwc[::-1, ::-1], low=(low_h, low_w), interpret=interpret
    )
    kernel_grad = pallas_toeplitz.kernel_gradient(
      x_cbhw, y_grad, kernel_hwc.shape[:2], interpret=interpret
    )
    return x_grad, kernel_grad.astype(kernel_hwc.dtype)

  return _on_platform(kernel, _xla_backward, x_cbhw, kernel_hwc, y_grad)


def _xla_forward(x_cbhw: Array, kernel_hwc: Array) -> Array:
  return xla.forward(x_cbhw.transpose(1, 2, 3, 0), kernel_hwc).transpose(3, 0, 1, 2)


def _xla_backward(x_cbhw: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  _, vjp = jax.vjp(_xla_forward, x_cbhw, kernel_hwc)
  return vjp(y_grad)


def _on_platform(kernel: Callable[..., Any], otherwise: Callable[..., Any], *args: Array) -> Any:
  """Calls `kernel` on CUDA, interprets it on CPU, and calls `otherwise` on other platforms."""
  return lax.platform_dependent(
    *args,
    cpu=functools.partial(kernel, interpret=True),
    cuda=functools.partial(kernel, interpret=False),
    default=otherwise,
  )


def _is_supported(x_cbhw: Array, kernel_hwc: Array) -> bool:
  """Whether the kernels support these feature maps; logs once per unsupported kind."""
  is_supported = (
    x_cbhw.dtype == jnp.bfloat16  # products of float32 feature maps would lose precision
    and all(isinstance(size, int) and size > 0 for size in x_cbhw.shape)  # not symbolic
    and all(8 <= size <= 64 for size in x_cbhw.shape[2:])
    and all(size <= 15 for size in kernel_hwc.shape[:2])
  )
  if not is_supported:
    _log_fallback(str(x_cbhw.shape), kernel_hwc.shape[:2], str(x_cbhw.dtype))
  return is_supported


@functools.cache
def _log_fallback(shape: str, kernel_size: tuple[int, ...], dtype: str) -> None:
  _log.info(
    "no Pallas kernel for cbhw %s, kernel %s, %s; using xla instead", shape, kernel_size, dtype
  )
