import dataclasses
import io

import numpy as np
import PIL.Image
import pytest

from convmixer_jax.data import Batches, Preprocess, in_memory
from convmixer_jax.errors import UserError
from convmixer_jax.source import ArraySource, open_source

SOURCE = ArraySource(
  np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8),
  np.arange(10, dtype=np.int32) % 3,
  ["a", "b", "c"],
)
TRAIN = Batches(SOURCE, Preprocess(4), batch_size=4, train=True, seed=5)
TEST = dataclasses.replace(TRAIN, train=False)


def test_each_epoch_is_another_permutation_that_seed_and_epoch_decide():
  whole = dataclasses.replace(TRAIN, drop_remainder=False)
  assert len(whole) == 3
  epochs = [np.concatenate([whole.indices(3 * epoch + i) for i in range(3)]) for epoch in range(3)]
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
  assert len({tuple(epoch) for epoch in epochs}) == 3
  again = dataclasses.replace(TRAIN, drop_remainder=False)
  np.testing.assert_array_equal(again.indices(7), whole.indices(7))
  other = dataclasses.replace(whole, seed=6)
  assert not np.array_equal(other.indices(0), whole.indices(0))


def test_dropping_the_remainder():
  assert len(TRAIN) == 2
  assert [len(TRAIN.indices(i)) for i in range(4)] == [4, 4, 4, 4]
  whole = dataclasses.replace(TRAIN, drop_remainder=False)
  assert [len(whole[i]["label"]) for i in range(6)] == [4, 4, 2, 4, 4, 2]


def test_evaluation_counts_each_example_once():
  batches = list(TEST.iterate(0, len(TEST)))
  assert [batch["image"].shape for batch in batches] == [(4, 4, 4, 1)] * 3
  mask = np.concatenate([batch["mask"] for batch in batches])
  pixels = np.concatenate([batch["image"] for batch in batches])[:, 0, 0, 0]
  np.testing.assert_array_equal(pixels[mask == 1], np.arange(10))
  labels = np.concatenate([batch["label"] for batch in batches])
  np.testing.assert_array_equal(labels[mask == 1], np.arange(10) % 3)


@pytest.mark.parametrize("batches", [TRAIN, TEST], ids=["train", "test"])
def test_processes_share_the_global_batch(batches):
  for number in range(2):
    shares = [
      dataclasses.replace(batches, process_index=i, process_count=2)[number] for i in range(2)
    ]
    for name, whole in batches[number].items():
      np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), whole)


def test_a_start_in_the_middle_continues_the_stream():
  unbroken = list(TRAIN.iterate(0, 6))
  for number, batch in zip(range(3, 6), TRAIN.iterate(3, 6), strict=True):
    np.testing.assert_array_equal(batch["image"], unbroken[number]["image"])


def test_index_only_points_to_the_same_examples():
  batch, index = TRAIN[1], dataclasses.replace(TRAIN, index_only=True)[1]
  assert index["index"].dtype == np.int32
  np.testing.assert_array_equal(SOURCE.images[index["index"]], batch["image"])
  assert set(index) == {"index", "mask"}


def test_worker_processes_give_the_same_random_crops(image_folder):
  source = open_source("folder", "train", str(image_folder))
  preprocess = Preprocess(16, "random_resized")
  batches = Batches(source, preprocess, batch_size=5, train=True, seed=1)
  expected = [batches[i] for i in range(4)]
  for workers in (0, 2):
    for ours, theirs in zip(batches.iterate(0, 4, workers), expected, strict=True):
      np.testing.assert_array_equal(ours["image"], theirs["image"])
      np.testing.assert_array_equal(ours["label"], theirs["label"])
  assert not np.array_equal(expected[0]["image"], expected[2]["image"])


def encoded(width, height, mode="RGB"):
  gradient = np.linspace(0, 255, width)[None, :, None] + np.zeros((height, 1, 3))
  image, file = PIL.Image.fromarray(gradient.astype(np.uint8)).convert(mode), io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()


def pillow_centre(width, height, resized, left, top):
  image = PIL.Image.open(io.BytesIO(encoded(width, height)))
  image = image.resize(resized, PIL.Image.Resampling.BICUBIC)
  return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.mark.parametrize(
  ("size", "resized", "left", "top"),
  [  # timm's geometry for 224 pixels and a fraction of 0.96
    ((500, 375), (310, 233), 43, 4),
    ((375, 500), (233, 310), 4, 43),
    ((224, 224), (233, 233), 4, 4),
    ((235, 233), (235, 233), 6, 4),  # 5.5 rounds to 6
    ((237, 233), (237, 233), 6, 4),  # 6.5 rounds to 6
    ((586, 293), (466, 233), 121, 4),  # exactly twice as long stays so
  ],
)
def test_centre_crop_is_timms(size, resized, left, top):
  ours = Preprocess(224, "random_resized")(encoded(*size), 3, None)
  np.testing.assert_array_equal(ours, pillow_centre(*size, resized, left, top))


def test_random_crops_cover_the_range_of_areas_and_ratios():
  """The gradient along the width tells where a crop lies and how wide it is."""
  preprocess, rng = Preprocess(32, "random_resized"), np.random.default_rng(0)
  image = encoded(200, 200)
  crops = [preprocess(image, 3, rng).astype(float)[..., 0] for _ in range(300)]
  widths = [(crop[0, -1] - crop[0, 0]) / 255 for crop in crops]
  assert 0.2 < min(widths) < 0.35  # sqrt(0.08 * 3/4) = 0.24
  assert max(widths) > 0.9
  assert min(crop[0, 0] for crop in crops) < 10
  assert max(crop[0, -1] for crop in crops) > 245
  whole = Preprocess(32, "random_resized", scale=(1.0, 1.0), ratio=(1.0, 1.0))
  crop = whole(image, 3, rng)
  assert crop[0, 0, 0] < 5
  assert crop[0, -1, 0] > 250


def test_in_memory_decodes_all(image_folder):
  source = open_source("folder", "train", str(image_folder))
  memory = in_memory(source, Preprocess(40))
  assert memory.images.shape == (10, 40, 40, 3)
  for (encoded_image, _), pixels in zip(source.read(range(10)), memory.images, strict=True):
    picture = PIL.Image.open(io.BytesIO(encoded_image))
    np.testing.assert_array_equal(pixels, np.asarray(picture))
  np.testing.assert_array_equal(memory.labels, [0] * 5 + [1] * 5)


def test_grey_pictures_become_colour_where_the_dataset_is():
  assert Preprocess(8)(encoded(8, 8, "L"), 3, None).shape == (8, 8, 3)
  assert Preprocess(8)(encoded(8, 8, "RGB"), 1, None).shape == (8, 8, 1)


def test_errors():
  with pytest.raises(UserError, match=r"10x12 pixels .*image_size is 8.*random_resized"):
    Preprocess(8)(encoded(12, 10), 3, None)
  with pytest.raises(UserError, match="of 50 bytes cannot be decoded"):
    Preprocess(8)(encoded(8, 8)[:50], 3, None)
  with pytest.raises(UserError, match="of 4 bytes cannot be decoded"):
    Preprocess(8)(b"JPEG", 3, None)
