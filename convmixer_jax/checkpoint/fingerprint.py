"""A hash of each array of a state, independent of how the array is sharded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprints(tree: Any) -> dict[str, int]:
  """A 32-bit hash of each array, by its path in the tree.

  A change of a single element always changes the hash; other corruption does so in all but one
  case of 2^32. Arrays may be sharded over processes; then all of them must call this.
  """
  found = jax.device_get(jax.tree.map(_fingerprint, tree))
  paths, _ = jax.tree.flatten_with_path(found)
  return {jax.tree_util.keystr(path): int(value) for path, value in paths}


@jax.jit  # one small program for each shape: one for the whole tree takes longer to compile
def _fingerprint(x: jax.Array) -> jax.Array:
  """The sum of hashes of each element and its index; in integers, so the order does not matter."""
  index, stride = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):  # not flattened: that would gather a sharded array
    place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    index, stride = index + place * np.uint32(stride & 0xFFFFFFFF), stride * x.shape[axis]
  return _mix(_bits(x) + _mix(index)).sum(dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
  if x.dtype == bool:
    return x.astype(jnp.uint32)
  unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
  """The finalizer of MurmurHash3, a permutation of the 32-bit integers."""
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)
