import dataclasses
import io
import multiprocessing
import re
import shutil

import numpy as np
import PIL.Image
import pytest

from convmixer_jax.data.batches import Batches, in_memory
from convmixer_jax.data.corrupt import CorruptExamples
from convmixer_jax.data.datasets import ArraySource, open_source
from convmixer_jax.data.preprocess import Preprocess
from convmixer_jax.errors import UserError
from tests.conftest import spoil_record

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


def test_in_memory_decodes_all(image_folder):
  source = open_source("folder", "train", str(image_folder))
  memory = in_memory(source, Preprocess(40))
  assert memory.images.shape == (10, 40, 40, 3)
  for (encoded_image, _), pixels in zip(source.read(range(10)), memory.images, strict=True):
    picture = PIL.Image.open(io.BytesIO(encoded_image))
    np.testing.assert_array_equal(pixels, np.asarray(picture))
  np.testing.assert_array_equal(memory.labels, [0] * 5 + [1] * 5)


def corrupt_photos(image_folder, tmp_path):
  """Copies `image_folder` and truncates the training images 3 and 7; returns their files."""
  folder = shutil.copytree(image_folder, tmp_path / "photos")
  files = [folder / "train" / name for name in ("ant/3.jpg", "bee/2.jpg")]
  for file in files:
    file.write_bytes(file.read_bytes()[:-300])
  return open_source("folder", "train", str(folder)), files


@pytest.mark.parametrize("workers", [0, 2])
def test_without_patience_an_error_names_the_file(image_folder, tmp_path, workers):
  source, files = corrupt_photos(image_folder, tmp_path)
  batches = Batches(source, Preprocess(40), batch_size=10, train=False)
  with pytest.raises(UserError, match=re.escape(str(files[0])) + r": .*cannot be decoded"):
    list(batches.iterate(0, 1, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_replaced_in_training(image_folder, tmp_path, caplog, workers):
  """The substitutes have their own labels, and all other rows are unchanged."""
  source, _ = corrupt_photos(image_folder, tmp_path)
  whole = open_source("folder", "train", str(image_folder))
  sound = Batches(whole, Preprocess(40), batch_size=4, train=True, seed=2, drop_remainder=False)
  batches = dataclasses.replace(sound, source=source, corrupt_examples=CorruptExamples(limit=2))
  pictures = {image.tobytes(): label for image, label in zip(*sound_images(whole), strict=True)}
  replaced = 0
  for number, batch in enumerate(batches.iterate(0, 6, workers)):  # two epochs
    is_corrupt = np.isin(batches.indices(number), [3, 7])
    replaced += is_corrupt.sum()
    before = sound[number]
    np.testing.assert_array_equal(batch["image"][~is_corrupt], before["image"][~is_corrupt])
    np.testing.assert_array_equal(batch["mask"], before["mask"])
    for image, label in zip(batch["image"], batch["label"], strict=True):
      assert pictures[image.tobytes()] == label
    anew = dataclasses.replace(batches, corrupt_examples=CorruptExamples(limit=2))[
      number
    ]  # a new instance, which knows no corrupt examples yet
    np.testing.assert_array_equal(batch["image"], anew["image"])
  assert replaced == 4
  skipped = [r.message for r in caplog.records if "skipped a corrupt" in r.message]
  assert sorted(re.search(r"photos/(\S+):", line)[1] for line in skipped) == [
    "train/ant/3.jpg",
    "train/bee/2.jpg",
  ]
  np.testing.assert_array_equal(batches.readable(), [0, 1, 2, 4, 5, 6, 8, 9])


def sound_images(source):
  memory = in_memory(source, Preprocess(40))
  return memory.images, memory.labels


def test_the_substitute_depends_on_no_share(image_folder, tmp_path):
  source, _ = corrupt_photos(image_folder, tmp_path)
  one = Batches(
    source, Preprocess(40), batch_size=10, train=True, corrupt_examples=CorruptExamples(limit=2)
  )
  shares = [dataclasses.replace(one, process_index=i, process_count=2)[0] for i in range(2)]
  for name, rows in one[0].items():
    np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), rows)


def test_corrupt_images_are_masked_in_evaluation(image_folder, tmp_path):
  source, _ = corrupt_photos(image_folder, tmp_path)
  batches = Batches(
    source, Preprocess(40), 4, train=False, corrupt_examples=CorruptExamples(limit=2)
  )
  for _ in range(2):
    mask = np.concatenate([batch["mask"] for batch in batches.iterate(0, 3)])
    np.testing.assert_array_equal(mask, [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 0])


def test_too_many_corrupt_images_end_the_run(image_folder, tmp_path):
  source, _ = corrupt_photos(image_folder, tmp_path)
  batches = Batches(
    source, Preprocess(40), 4, train=False, corrupt_examples=CorruptExamples(limit=1)
  )
  found = batches.iterate(0, 3)
  assert next(found)["mask"].sum() == 3
  with pytest.raises(UserError, match=r"2 examples are corrupt, config.run.max_corrupt is 1: .*"):
    list(found)


def test_a_corrupt_record_is_skipped_and_a_cut_file_ends_the_run(tfds_dir, tmp_path):
  root = shutil.copytree(tfds_dir, tmp_path / "tfds")
  file = next(root.rglob("*-train.array_record*"))
  spoil_record(file, 4)
  source = open_source("ants_and_bees", "train", str(root))
  batches = Batches(
    source, Preprocess(40), 5, train=False, corrupt_examples=CorruptExamples(limit=1)
  )
  masks = [batch["mask"].tolist() for batch in batches.iterate(0, 2)]
  assert masks == [[1, 1, 1, 1, 0], [1] * 5]
  assert (
    'split "train", example 4: the record cannot be read' in batches.corrupt_examples.reasons[4]
  )
  file.write_bytes(file.read_bytes()[:-100])
  for _ in range(2):
    source = open_source("ants_and_bees", "train", str(root))
    with pytest.raises(UserError, match=re.escape(str(file)) + " is missing, truncated or"):
      dataclasses.replace(batches, source=source, corrupt_examples=CorruptExamples(limit=10))[0]
    file.unlink(missing_ok=True)


def test_killed_workers_are_replaced(image_folder):
  source = open_source("folder", "train", str(image_folder))
  batches = Batches(source, Preprocess(16, "random_resized"), batch_size=5, train=True, seed=1)
  for number, batch in enumerate(batches.iterate(0, 40, workers=2)):
    if number == 2:
      for process in multiprocessing.active_children():
        process.kill()
    np.testing.assert_array_equal(batch["image"], batches[number]["image"])
  assert number == 39


def test_an_error_names_the_example_of_a_dataset(tfds_dir):
  source = open_source("ants_and_bees", "test", str(tfds_dir))
  assert source.describe(3) == 'ants_and_bees/1.0.0, split "test", example 3'
  with pytest.raises(UserError, match='split "test", example 0: an image has 40x40 pixels'):
    in_memory(source, Preprocess(8))


def test_a_split_without_an_example_that_can_be_read(image_folder, tmp_path):
  folder = shutil.copytree(image_folder, tmp_path / "photos")
  for file in folder.rglob("train/*/*.jpg"):
    file.write_bytes(b"no JPEG")
  source = open_source("folder", "train", str(folder))
  batches = Batches(
    source, Preprocess(40), 4, train=True, corrupt_examples=CorruptExamples(limit=10)
  )
  with pytest.raises(UserError, match=r"all 10 examples are corrupt: .*jpg: "):
    batches[0]
