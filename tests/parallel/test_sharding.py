import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from convmixer_jax.errors import UserError
from convmixer_jax.parallel import sharding


def test_all_devices_are_on_the_mesh():
  mesh = sharding.make_mesh()
  assert mesh.shape == {"data": 8, "fsdp": 1}
  assert sharding.make_mesh(jax.devices()[:2]).size == 2


def test_rows_of_the_mesh_are_neighbours_in_order():
  mesh = sharding.make_mesh(jax.devices()[::-1], fsdp=2)
  assert mesh.shape == {"data": 4, "fsdp": 2}
  assert [device.id for device in mesh.devices.flat] == list(range(8))
  with pytest.raises(UserError, match=r"config.parallel.fsdp is 3.*8 devices"):
    sharding.make_mesh(fsdp=3)


SHAPES = {
  "pointwise": (1, 1, 96, 96),
  "wide": (128, 64),
  "tall": (50, 128),
  "odd": (81, 67),
  "small": (63, 64),
  "scalar": (),
}


@pytest.mark.parametrize(
  ("fsdp", "cut"),
  [
    (1, {}),
    (4, {"pointwise": 3, "wide": 0, "tall": 1}),
    (8, {"pointwise": 3, "wide": 0, "tall": 1}),
  ],
)
def test_large_arrays_are_cut_along_their_longest_axis(fsdp, cut):
  mesh = sharding.make_mesh(fsdp=fsdp)
  shapes = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in SHAPES.items()}
  specs = {name: sharding.spec for name, sharding in sharding.state_sharding(mesh, shapes).items()}
  expected = {name: PartitionSpec(*[None] * axis, "fsdp") for name, axis in cut.items()}
  assert specs == {name: expected.get(name, PartitionSpec()) for name in SHAPES}


def test_the_mesh_is_described_with_what_is_cut():
  params = {"kernel": np.zeros((64, 192)), "bias": np.zeros(192)}
  assert sharding.describe(sharding.make_mesh(), params).endswith(
    "data=8, fsdp=1; 12,480 parameters, replicated on each device"
  )
  text = sharding.describe(sharding.make_mesh(fsdp=4), params)
  assert "data=2, fsdp=4; 12,480 parameters: 1 arrays with 98.5% of them" in text
