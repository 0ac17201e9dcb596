"""Floating-point arithmetic whose rounding does not depend on the compiler."""

from jax import Array
import jax.numpy as jnp
import numpy as np


def product(x: Array, y: Array) -> Array:
  """x * y in float32, rounded before anything is added to it.

  Depending on what else they fuse, compilers may contract a product and a sum into a fused
  multiply-add with a single rounding. If the result is then truncated to an integer, as in Pillow,
  pixels would differ by one level from Pillow, and between batch shards of different sizes. The
  maximum, which changes no finite value, prevents the contraction.
  """
  return jnp.maximum(x * y, np.finfo(np.float32).min)
