"""Implementations that are chosen when a computation is lowered, and its platform is known."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import Array
import jax.extend
from jax.interpreters import batching, mlir
import jax.numpy as jnp

from convmixer_jax.depthwise import orders

_PLATFORMS = (None, "cpu", "cuda", "tpu")  # None for all others


class ByPlatform:
  """A forward and a backward function, of which only the platform's implementation is traced.

  Args:
    name: of the primitives.
    order: "bhwc" or "cbhw", of the feature maps of both functions.
    choose: given the platform, or None for one that is not in this module's list, whether the
      program is made by `jax.export`, and the types of the feature map and the kernel, returns a
      module with `ORDER`, `forward` and `backward`.
  """

  def __init__(self, name: str, order: str, choose: Callable[..., Any]) -> None:
    self.order, self._choose = order, choose
    self._primitives = {
      function: self._primitive(f"{name}_{function}", function, results)
      for function, results in (("forward", 1), ("backward", 2))
    }

  def forward(self, x: Array, kernel_hwc: Array) -> Array:
    """The convolution of `x`, in its shape and dtype."""
    (y,) = self._primitives["forward"].bind(x, kernel_hwc)
    return y

  def backward(self, x: Array, kernel_hwc: Array, y_grad: Array) -> tuple[Array, Array]:
    """The gradients with respect to `x` and `kernel_hwc`, in their dtypes."""
    x_grad, kernel_grad = self._primitives["backward"].bind(x, kernel_hwc, y_grad)
    return x_grad, kernel_grad

  def _primitive(self, name: str, function: str, results: int) -> jax.extend.core.Primitive:
    primitive = jax.extend.core.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(lambda *args: args[:results])  # same types as the first arguments
    batching.primitive_batchers[primitive] = functools.partial(
      _fold_into_channels, primitive, self.order.index("c")
    )
    for platform in _PLATFORMS:
      lower = functools.partial(self._lower, function, platform)
      mlir.register_lowering(primitive, lower, platform=platform)
    return primitive

  def _lower(self, function: str, platform: str | None, context: Any, *args: Any) -> Any:
    is_export = context.module_context.lowering_parameters.for_export
    module = self._choose(platform, is_export, *context.avals_in[:2])
    call = functools.partial(getattr(orders, function), module=module, order=self.order)
    return mlir.lower_fun(call, multiple_results=function == "backward")(context, *args)


def _fold_into_channels(
  primitive: jax.extend.core.Primitive, c: int, args: Sequence[Array], axes: Sequence[Any]
) -> tuple[list[Array], list[int]]:
  """The rule for `vmap`: channels are independent, so the mapped axis is folded into them."""
  size = next(x.shape[a] for x, a in zip(args, axes, strict=True) if a is not None)
  channels = [2 if n == 1 else c for n in range(len(args))]  # the kernel's are its last

  def fold(x: Array, axis: Any, c: int) -> Array:
    if axis is None:
      x, axis = jnp.broadcast_to(x[None], (size, *x.shape)), 0
    x = jnp.moveaxis(x, axis, c)
    return x.reshape(*x.shape[:c], -1, *x.shape[c + 2 :])

  results = primitive.bind(*map(fold, args, axes, channels))
  places = channels[: len(results)]
  unfolded = [
    y.reshape(*y.shape[:c], size, -1, *y.shape[c + 1 :])
    for y, c in zip(results, places, strict=True)
  ]
  return unfolded, places
