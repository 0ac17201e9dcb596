import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from convmixer_jax import mesh as mesh_lib
from convmixer_jax.errors import UserError
from convmixer_jax.source import ArraySource

SOURCE = ArraySource(
  np.random.RandomState(0).randint(0, 256, (20, 4, 4, 3)).astype(np.uint8),
  np.arange(20, dtype=np.int32),
  ["a"],
)


def test_all_devices_are_on_the_mesh():
  mesh = mesh_lib.make_mesh()
  assert mesh.shape == {"data": 8, "fsdp": 1}
  assert mesh_lib.make_mesh(jax.devices()[:2]).size == 2


def test_rows_of_the_mesh_are_neighbours_in_order():
  mesh = mesh_lib.make_mesh(jax.devices()[::-1], fsdp=2)
  assert mesh.shape == {"data": 4, "fsdp": 2}
  assert [device.id for device in mesh.devices.flat] == list(range(8))
  with pytest.raises(UserError, match=r"config.parallel.fsdp is 3.*8 devices"):
    mesh_lib.make_mesh(fsdp=3)


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
  mesh = mesh_lib.make_mesh(fsdp=fsdp)
  shapes = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in SHAPES.items()}
  specs = {name: sharding.spec for name, sharding in mesh_lib.cut(mesh, shapes).items()}
  expected = {name: PartitionSpec(*[None] * axis, "fsdp") for name, axis in cut.items()}
  assert specs == {name: expected.get(name, PartitionSpec()) for name in SHAPES}


def test_the_mesh_is_described_with_what_is_cut():
  params = {"kernel": np.zeros((64, 192)), "bias": np.zeros(192)}
  assert mesh_lib.describe(mesh_lib.make_mesh(), params).endswith(
    "data=8, fsdp=1; 12,480 parameters, a copy on each device"
  )
  text = mesh_lib.describe(mesh_lib.make_mesh(fsdp=4), params)
  assert "data=2, fsdp=4; 12,480 parameters: 1 arrays with 98.5% of them" in text


def test_a_batch_is_cut_over_the_devices():
  feed = mesh_lib.Feed(mesh_lib.make_mesh())
  batch = feed({"image": SOURCE.images[:16], "label": SOURCE.labels[:16]})
  np.testing.assert_array_equal(batch["image"], SOURCE.images[:16])
  for shard in batch["label"].addressable_shards:
    assert shard.data.shape == (2,)
    np.testing.assert_array_equal(shard.data, SOURCE.labels[shard.index])


def test_resident_images_are_looked_up_where_they_lie():
  feed = mesh_lib.Feed(mesh_lib.make_mesh(), SOURCE)
  index = np.int32([3, 1, 19, 0, 0, 7, 5, 11])
  batch = feed({"index": index, "mask": np.ones(8, np.float32)})
  np.testing.assert_array_equal(batch["image"], SOURCE.images[index])
  np.testing.assert_array_equal(batch["label"], index)
  assert [shard.data.shape for shard in batch["image"].addressable_shards] == [(1, 4, 4, 3)] * 8
