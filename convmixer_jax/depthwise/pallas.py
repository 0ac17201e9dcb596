"""Depthwise convolution by our Pallas kernels for the platform that it is lowered for.

For NVIDIA GPUs they are in `pallas_gpu`, for TPUs in `pallas_tpu`. On CPU those for TPUs are
interpreted, which is slow and meant for tests. What the kernels do not support, and other
platforms, fall back to `xla`, with one log line per shape.
"""

import functools
import logging
from types import SimpleNamespace
from typing import Any

from jax import Array

from convmixer_jax.depthwise import xla
from convmixer_jax.depthwise.lowering import ByPlatform

ORDER = "cbp"

_log = logging.getLogger(__name__)


def forward(x_cbhw: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_cbhw`, in its shape and dtype."""
  return _implementation().forward(x_cbhw, kernel_hwc)


def backward(x_cbhw: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_cbhw` and `kernel_hwc`, in their dtypes."""
  return _implementation().backward(x_cbhw, kernel_hwc, y_grad)


@functools.cache
def _implementation() -> ByPlatform:
  return ByPlatform("depthwise_pallas", "cbhw", _choose)


def _choose(platform: str | None, is_export: bool, x: Any, kernel: Any) -> Any:
  del is_export
  from convmixer_jax.depthwise import pallas_gpu, pallas_tpu  # import Pallas: up to 0.4 s

  module = {"cuda": pallas_gpu, "tpu": pallas_tpu, "cpu": pallas_tpu}.get(platform or "")
  if module is None or not module.is_supported(x, kernel):
    _log_fallback(str(x.shape), kernel.shape[:2], str(x.dtype), platform)
    return xla
  if platform != "cpu":
    return module
  interpreted = {
    name: functools.partial(getattr(module, name), interpret=True)
    for name in ("forward", "backward")
  }
  return SimpleNamespace(ORDER=module.ORDER, **interpreted)


@functools.cache
def _log_fallback(shape: str, size: tuple[int, ...], dtype: str, platform: str | None) -> None:
  _log.info(
    "no Pallas kernel for cbhw %s, kernel %s, %s on %s; using xla instead",
    *(shape, size, dtype, platform or "this platform"),
  )
