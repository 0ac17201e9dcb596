"""Depthwise convolution for NVIDIA GPUs as banded matrix products on tensor cores, in Pallas.

The maps are channel-major and bfloat16; others go to `xla`, with one log line for each shape.
`pallas_toeplitz` has the kernels. On CPU they are interpreted: slow, for tests. JAX announces the
end of Pallas's Triton backend, with a DeprecationWarning from 0.11 on when this is lowered for a
GPU.
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
  """The feature map of `x_cbhw`'s shape and dtype."""
  if not _is_supported(x_cbhw, kernel_hwc):
    return _xla_forward(x_cbhw, kernel_hwc)

  def kernel(x_cbhw: Array, kernel_hwc: Array, interpret: bool) -> Array:
    from convmixer_jax.depthwise import pallas_toeplitz  # imports Pallas: up to 0.4 s

    low_h, low_w = ((size - 1) // 2 for size in kernel_hwc.shape[:2])
    return pallas_toeplitz.correlate(x_cbhw, kernel_hwc, low=(low_h, low_w), interpret=interpret)

  return _on_platform(kernel, _xla_forward, x_cbhw, kernel_hwc)


def backward(x_cbhw: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients of `x_cbhw` and `kernel_hwc`, in their dtypes."""
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
  """Calls `kernel` where the computation is lowered for CUDA, or interpreted for CPU."""
  return lax.platform_dependent(
    *args,
    cpu=functools.partial(kernel, interpret=True),
    cuda=functools.partial(kernel, interpret=False),
    default=otherwise,
  )


def _is_supported(x_cbhw: Array, kernel_hwc: Array) -> bool:
  """Whether the kernels take these maps; logs once for each kind that they do not."""
  is_supported = (
    x_cbhw.dtype == jnp.bfloat16  # products of float32 maps would lose their last digits
    and all(isinstance(size, int) and size > 0 for size in x_cbhw.shape)  # none symbolic
    and all(8 <= size <= 64 for size in x_cbhw.shape[2:])
    and all(size <= 15 for size in kernel_hwc.shape[:2])
  )
  if not is_supported:
    _log_fallback(str(x_cbhw.shape), kernel_hwc.shape[:2], str(x_cbhw.dtype))
  return is_supported


@functools.cache
def _log_fallback(shape: str, kernel_size: tuple[int, ...], dtype: str) -> None:
  _log.info("maps cbhw %s, kernel %s, %s: no Pallas kernel, xla", shape, kernel_size, dtype)
