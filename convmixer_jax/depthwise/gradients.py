"""Functions with a gradient of their own, in place of what JAX would derive."""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NoReturn

import jax
from jax import lax
import jax.extend
from jax.interpreters import ad, batching, mlir

_FORWARD_MODE = (
  "forward-mode differentiation (jvp, linearize, jacfwd) has no rule for this custom_vjp: "
  'build the model with depthwise="xla" (depthwise_conv with implementation="xla"), whose '
  "derivatives are all JAX's own. Reverse mode (grad, vjp, jacrev) works with any"
)


def own_gradient(function: Callable, forward: Callable, backward: Callable, arrays: int) -> Any:
  """`function` with `forward` and `backward`, the rules of a `jax.custom_vjp`.

  What JAX asks of such functions in addition is done here. Under `shard_map`, the gradient of an
  argument that the shards have in common is summed over them. Forward mode, which such rules
  exclude, raises a TypeError that says what to do instead.

  Args:
    function: called with positional arguments alone.
    forward, backward: as in `jax.custom_vjp`.
    arrays: the first so many arguments are arrays, or trees of them; the others are static.
  """
  static = range(arrays, len(inspect.signature(function).parameters))
  ruled = jax.custom_vjp(function, nondiff_argnums=tuple(static))
  ruled.defvjp(forward, backward)

  @functools.wraps(function)
  def call(*args: Any) -> Any:
    operands = _varying_alike(jax.tree.map(_reverse_mode_only, args[:arrays]))
    return ruled(*operands, *args[arrays:])

  return call


def _varying_alike(tree: Any) -> Any:
  """Under `shard_map`, marks all arrays as varying over the mesh axes of any."""

  def varying(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying

  axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

  def mark(array: jax.Array) -> jax.Array:
    missing = tuple(sorted(axes - varying(array)))
    return lax.pcast(array, missing, to="varying") if missing else array

  return jax.tree.map(mark, tree)


@jax.custom_jvp
def _reverse_mode_only(x: jax.Array) -> jax.Array:
  """`x`; its tangent can be transposed, and not be computed."""
  return x


@_reverse_mode_only.defjvp
def _tangent(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  return primals[0], _primitive().bind(tangents[0])


@functools.cache
def _primitive() -> jax.extend.core.Primitive:
  primitive = jax.extend.core.Primitive("reverse_mode_only")
  primitive.def_abstract_eval(lambda x: x)
  primitive.def_impl(_refuse)
  mlir.register_lowering(primitive, _refuse)
  batching.defvectorized(primitive)
  ad.deflinear2(primitive, lambda gradient, _: [gradient])
  return primitive


def _refuse(*_: Any, **__: Any) -> NoReturn:
  raise TypeError(_FORWARD_MODE)
