"""The best implementation without measurements, chosen by the platform of the lowering.

On CPU that is `native`, or `taps` if there is no C++ compiler or the program is made by
`jax.export`, since it may run on other machines. On all other platforms it is `xla`.
"""

import functools
import logging
from typing import Any

from jax import Array

from convmixer_jax.depthwise import native, taps, xla
from convmixer_jax.depthwise.lowering import ByPlatform

ORDER = "bhwc"

_log = logging.getLogger(__name__)


def forward(x_bhwc: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_bhwc`, in its shape and dtype."""
  return _implementation().forward(x_bhwc, kernel_hwc)


def backward(x_bhwc: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_bhwc` and `kernel_hwc`, in their dtypes."""
  return _implementation().backward(x_bhwc, kernel_hwc, y_grad)


@functools.cache
def _implementation() -> ByPlatform:
  return ByPlatform("depthwise", ORDER, _choose)


def _choose(platform: str | None, is_export: bool, *_: Any) -> Any:
  if platform != "cpu":
    return xla
  return native if default_on_cpu() == "native" and not is_export else taps


@functools.cache
def default_on_cpu() -> str:
  """What None means on the CPUs of this machine, "native" or "taps"; logs once which, and why."""
  if reason := native.why_not():
    _log.warning("depthwise convolution on CPU: taps, which is slower than native: %s", reason)
    return "taps"
  _log.info("depthwise convolution on CPU: native (C++, compiled on this machine)")
  return "native"
