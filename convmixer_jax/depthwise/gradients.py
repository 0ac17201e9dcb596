"""Functions with a custom gradient, in place of JAX's automatic one."""

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
  'build the model with depthwise="xla" (depthwise_conv with implementation="xla"), which '
  "leaves all derivatives to JAX. Reverse mode (grad, vjp, jacrev) works with any implementation"
)


def own_gradient(function: Callable, forward: Callable, backward: Callable, arrays: int) -> Any:
  """Wraps `function` in a `jax.custom_vjp` with the rules `forward` and `backward`.

  In addition, under `shard_map` the gradient of an argument that is replicated over the shards is
  summed over them. Forward mode, which a custom_vjp does not support, raises a TypeError that says
  what to do instead.

  Args:
    function: called with positional arguments only.
    forward, backward: as in `jax.custom_vjp`.
    arrays: number of leading arguments that are arrays or trees of arrays; the rest are static.
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
  """Under `shard_map`, marks all arrays as varying over the union of their mesh axes."""

  def varying(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying

  axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

  def mark(array: jax.Array) -> jax.Array:
    missing = tuple(sorted(axes - varying(array)))
    return lax.pcast(array, missing, to="varying") if missing else array

  return jax.tree.map(mark, tree)


@jax.custom_jvp
def _reverse_mode_only(x: jax.Array) -> jax.Array:
  """The identity, whose tangent can be transposed but not evaluated."""
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
