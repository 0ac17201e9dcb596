"""A number for each array of a state, by which it is known again: the same on any devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprints(tree: Any) -> dict[str, int]:
  """Of each array, by its path in the tree: 32 bits that depend on every bit of it.

  Another value of one number always gives another fingerprint, other corruption in all but one
  case of 2^32. Arrays may be cut over devices and processes, which all have to ask.
  """
  found = jax.device_get(_fingerprints(tree))
  paths, _ = jax.tree.flatten_with_path(found)
  return {jax.tree_util.keystr(path): int(value) for path, value in paths}


@jax.jit
def _fingerprints(tree: Any) -> Any:
  return jax.tree.map(_fingerprint, tree)


def _fingerprint(x: jax.Array) -> jax.Array:
  """The sum of a hash of each number and its place; integers, so that no order matters."""
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
  """MurmurHash3's last step, a permutation of the 32-bit numbers."""
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)
