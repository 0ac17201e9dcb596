"""Functions that XLA does not fuse with the surrounding code."""

from collections.abc import Callable
from functools import wraps
import inspect

import jax
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata


def not_inlined(function: Callable[..., Array]) -> Callable[..., Array]:
  """Jits a function and keeps XLA from inlining it; keyword-only arguments are static.

  XLA:CPU drops `lax.optimization_barrier` before fusion. This hint affects only speed, not results.
  """

  @wraps(function)
  def call(*args: Array, **static) -> Array:
    with set_xla_metadata(inlineable="false"):
      return jitted(*args, **static)

  jitted = jax.jit(function, static_argnames=inspect.getfullargspec(function).kwonlyargs)
  return call
