"""Functions that XLA does not fuse with what surrounds them."""

from collections.abc import Callable
from functools import wraps
import inspect

import jax
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata


def not_inlined(function: Callable[..., Array]) -> Callable[..., Array]:
  """Makes a jitted function that XLA does not inline; keyword-only arguments are static.

  XLA:CPU drops `lax.optimization_barrier` before it fuses. Without this hint the results are the
  same, only slower.
  """

  @wraps(function)
  def call(*args: Array, **static) -> Array:
    with set_xla_metadata(inlineable="false"):
      return jitted(*args, **static)

  jitted = jax.jit(function, static_argnames=inspect.getfullargspec(function).kwonlyargs)
  return call
