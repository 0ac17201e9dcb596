"""Chooses the best implementation for the platform that a computation is lowered for.

On CPU that is `native`, or `taps` if there is no C++ compiler or the program is made by
`jax.export`, since it may run on other machines. On all other platforms it is `xla`.
"""

from collections.abc import Callable, Sequence
import functools
import logging
from typing import Any

import jax
from jax import Array
import jax.extend
from jax.interpreters import batching, mlir
import jax.numpy as jnp

from convmixer_jax.depthwise import native, orders, taps, xla

ORDER = "bhwc"

_log = logging.getLogger(__name__)


def forward(x_bhwc: Array, kernel_hwc: Array) -> Array:
  """The convolution of `x_bhwc`, in its shape and dtype."""
  (y_bhwc,) = _primitive("forward").bind(x_bhwc, kernel_hwc)
  return y_bhwc


def backward(x_bhwc: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
  """The gradients with respect to `x_bhwc` and `kernel_hwc`, in their dtypes."""
  x_grad, kernel_grad = _primitive("backward").bind(x_bhwc, kernel_hwc, y_grad)
  return x_grad, kernel_grad


@functools.cache
def _primitive(name: str) -> jax.extend.core.Primitive:
  """A primitive whose implementation is chosen at lowering, when platform and export are known."""
  primitive = jax.extend.core.Primitive(f"depthwise_{name}")
  primitive.multiple_results = True
  primitive.def_impl(jax.jit(primitive.bind))
  results = 1 if name == "forward" else 2
  primitive.def_abstract_eval(lambda *args: args[:results])  # same types as the first arguments
  batching.primitive_batchers[primitive] = functools.partial(_fold_into_channels, primitive)

  def lower_for_cpu(context: Any, *args: Any) -> Any:
    is_export = context.module_context.lowering_parameters.for_export
    module = native if default_on_cpu() == "native" and not is_export else taps
    return _lowering(module, name)(context, *args)

  mlir.register_lowering(primitive, _lowering(xla, name))
  mlir.register_lowering(primitive, lower_for_cpu, platform="cpu")
  return primitive


def _lowering(module: Any, name: str) -> Callable[..., Any]:
  function = functools.partial(getattr(orders, name), module=module, order=ORDER)
  return mlir.lower_fun(function, multiple_results=name == "backward")


@functools.cache
def default_on_cpu() -> str:
  """What None means on the CPUs of this machine, "native" or "taps"; logs once which, and why."""
  if reason := native.why_not():
    _log.warning("depthwise convolution on CPU: taps, which is slower than native: %s", reason)
    return "taps"
  _log.info("depthwise convolution on CPU: native (C++, compiled on this machine)")
  return "native"


def _fold_into_channels(
  primitive: jax.extend.core.Primitive, args: Sequence[Array], axes: Sequence[Any]
) -> tuple[list[Array], list[int]]:
  """The rule for `vmap`: channels are independent, so the mapped axis is folded into them."""
  size = next(x.shape[a] for x, a in zip(args, axes, strict=True) if a is not None)

  def fold(x: Array, axis: Any) -> Array:
    if axis is None:
      x, axis = jnp.broadcast_to(x[None], (size, *x.shape)), 0
    x = jnp.moveaxis(x, axis, -2)
    return x.reshape(*x.shape[:-2], -1)

  results = primitive.bind(*map(fold, args, axes))
  unfolded = [y.reshape(*y.shape[:-1], size, -1) for y in results]
  return unfolded, [y.ndim - 2 for y in unfolded]
