import numpy as np
import pytest

from convmixer_jax.data.batches import Batches
from convmixer_jax.data.datasets import ArraySource
from convmixer_jax.data.preprocess import Preprocess
from convmixer_jax.data.shard_batch import ShardBatch, cached
from convmixer_jax.parallel.sharding import make_mesh

SOURCE = ArraySource(
  np.random.RandomState(0).randint(0, 256, (20, 4, 4, 3)).astype(np.uint8),
  np.arange(20, dtype=np.int32),
  ["a"],
)


def test_a_batch_is_cut_over_the_devices():
  shard_batch = ShardBatch(make_mesh())
  batch = shard_batch({"image": SOURCE.images[:16], "label": SOURCE.labels[:16]})
  np.testing.assert_array_equal(batch["image"], SOURCE.images[:16])
  for shard in batch["label"].addressable_shards:
    assert shard.data.shape == (2,)
    np.testing.assert_array_equal(shard.data, SOURCE.labels[shard.index])


def test_resident_images_are_looked_up_where_they_lie():
  shard_batch = ShardBatch(make_mesh(), SOURCE)
  index = np.int32([3, 1, 19, 0, 0, 7, 5, 11])
  batch = shard_batch({"index": index, "mask": np.ones(8, np.float32)})
  np.testing.assert_array_equal(batch["image"], SOURCE.images[index])
  np.testing.assert_array_equal(batch["label"], index)
  assert [shard.data.shape for shard in batch["image"].addressable_shards] == [(1, 4, 4, 3)] * 8


def test_an_unknown_cache_is_refused():
  batches = Batches(SOURCE, Preprocess(4), batch_size=8, train=False)
  with pytest.raises(ValueError, match=r"^cache is 'disk'; allowed: none, host, device$"):
    cached(batches, make_mesh(), "disk")
