"""Floating-point arithmetic that rounds alike wherever it is compiled."""

from jax import Array
import jax.numpy as jnp
import numpy as np


def product(x: Array, y: Array) -> Array:
  """x * y in float32, rounded before anything is added to it.

  Compilers turn a product and a sum into one operation with one rounding, or do not, depending
  on what else they fuse. Where the result is then cut to an integer, as Pillow does, pixels would
  differ by a level from it and between differently sized shards of a batch. The comparison, which
  changes no finite value, keeps the two apart.
  """
  return jnp.maximum(x * y, np.finfo(np.float32).min)
