import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.checkpoint.fingerprint import fingerprints
from convmixer_jax.parallel import sharding


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint8, bool])
def test_each_number_counts_and_so_does_its_place(dtype):
  values = np.random.RandomState(0).randint(0, 2, (3, 5)).astype(dtype)
  seen = {fingerprints({"a": values})["['a']"]}
  for place in np.ndindex(values.shape):
    other = values.copy()
    other[place] = 1 - other[place]
    seen.add(fingerprints({"a": other})["['a']"])
  seen.add(fingerprints({"a": np.roll(values, 1, 0)})["['a']"])
  assert len(seen) == values.size + 2


def test_shards_and_order_of_devices_do_not_matter():
  values = np.random.RandomState(0).randn(16, 6).astype(np.float32)
  expected = fingerprints({"w": {"x": values}, "scalar": np.float32(2)})
  assert set(expected) == {"['w']['x']", "['scalar']"}
  mesh = sharding.make_mesh()
  cut = jax.device_put(values, sharding.batch_sharding(mesh))
  assert fingerprints({"w": {"x": cut}, "scalar": np.float32(2)}) == expected


def test_signs_of_two_numbers_do_not_cancel():
  values = np.float32([1, 2, 3, 4])
  assert fingerprints([values]) != fingerprints([values * np.float32([-1, 1, -1, 1])])
