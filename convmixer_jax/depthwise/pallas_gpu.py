"""Depthwise convolution for NVIDIA GPUs as banded matrix products on tensor cores, in Pallas.

The maps are channel-major and bfloat16; others are transposed or go to `xla`, with one log line for
each shape. `pallas_toeplitz` has the kernels. On CPU they are interpreted: slow, for tests. JAX
announces the end of Pallas's Triton backend, with a DeprecationWarning from 0.11 on when this is
lowered for a GPU.
"""

from collections.abc import Callable
import functools
import logging
from typing import Any

from jax import Array, lax
import jax.numpy as jnp

from convmixer_jax.depthwise import xla

_log = logging.getLogger(__name__)


def forward(x: Array, kernel_hwc: Array, layout: str) -> Array:
  """Returns the map of `x`'s shape and dtype; `layout` names the dimensions of `x`, like 'bhwc'."""
  if not _is_supported(x, kernel_hwc, layout):
    return xla.forward(x, kernel_hwc, layout)

  def kernel(x: Array, kernel_hwc: Array, interpret: bool) -> Array:
    from convmixer_jax.depthwise import pallas_toeplitz  # imports Pallas: up to 0.4 s

    low_h, low_w = ((size - 1) // 2 for size in kernel_hwc.shape[:2])
    y_cbhw = pallas_toeplitz.correlate(
      _transpose(x, layout, "cbhw"), kernel_hwc, low=(low_h, low_w), interpret=interpret
    )
    return _transpose(y_cbhw, "cbhw", layout)

  return _on_platform(kernel, functools.partial(xla.forward, layout=layout), x, kernel_hwc)


def backward(x: Array, kernel_hwc: Array, y_grad: Array, layout: str) -> tuple[Array, Array]:
  """Returns the gradients of `x` and `kernel_hwc`, in their dtypes."""
  if not _is_supported(x, kernel_hwc, layout):
    return xla.backward(x, kernel_hwc, y_grad, layout)

  def kernel(x: Array, kernel_hwc: Array, y_grad: Array, interpret: bool) -> tuple[Array, Array]:
    from convmixer_jax.depthwise import pallas_toeplitz  # imports Pallas: up to 0.4 s

    x_cbhw, g_cbhw = (_transpose(a, layout, "cbhw") for a in (x, y_grad))
    low_h, low_w = (size // 2 for size in kernel_hwc.shape[:2])
    x_grad = pallas_toeplitz.correlate(
      g_cbhw, kernel_hwc[::-1, ::-1], low=(low_h, low_w), interpret=interpret
    )
    kernel_grad = pallas_toeplitz.kernel_gradient(
      x_cbhw, g_cbhw, kernel_hwc.shape[:2], interpret=interpret
    )
    return _transpose(x_grad, "cbhw", layout), kernel_grad.astype(kernel_hwc.dtype)

  otherwise = functools.partial(xla.backward, layout=layout)
  return _on_platform(kernel, otherwise, x, kernel_hwc, y_grad)


def _transpose(x: Array, source: str, target: str) -> Array:
  return x.transpose([source.index(letter) for letter in target])


def _on_platform(kernel: Callable[..., Any], otherwise: Callable[..., Any], *args: Array) -> Any:
  """Calls `kernel` where the computation is lowered for CUDA, or interpreted for CPU."""
  return lax.platform_dependent(
    *args,
    cpu=functools.partial(kernel, interpret=True),
    cuda=functools.partial(kernel, interpret=False),
    default=otherwise,
  )


def _is_supported(x: Array, kernel_hwc: Array, layout: str) -> bool:
  """Whether the kernels take these maps; logs once for each kind that they do not."""
  sizes = dict(zip(layout, x.shape, strict=True))
  is_supported = (
    x.dtype == jnp.bfloat16  # products of float32 maps would lose their last digits
    and all(isinstance(size, int) and size > 0 for size in x.shape)  # none symbolic
    and all(8 <= sizes[letter] <= 64 for letter in "hw")
    and all(size <= 15 for size in kernel_hwc.shape[:2])
  )
  if not is_supported:
    _log_fallback(str(x.shape), kernel_hwc.shape[:2], layout, str(x.dtype))
  return is_supported


@functools.cache
def _log_fallback(shape: str, kernel_size: tuple[int, ...], layout: str, dtype: str) -> None:
  _log.info("maps %s %s, kernel %s, %s: no Pallas kernel, xla", layout, shape, kernel_size, dtype)
