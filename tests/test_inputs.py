import re
import shutil

import jax
import numpy as np
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.errors import UserError
from convmixer_jax.inputs import make_augmentation, open_split
from convmixer_jax.preprocess import Preprocess
from tests.conftest import spoil_record


@pytest.fixture
def config(configs):
  return config_lib.read(configs / "digits.py")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      {"model.num_classes": 9},
      r"num_classes is 9, but digits has 10 .*--config.model.num_classes=10",
    ),
    ({"augment.mean": (0.5,) * 3}, r"are of 3 channels, but digits has 1"),
    ({"data.batch_size": 100}, r"config.data.batch_size is 100, which 8 devices .* multiple of 8"),
    ({"data.batch_size": 1440}, r"only 1437 training examples: set at most 1432"),
    ({"data.drop_remainder": False}, r"a last batch of 29 that 8 devices .*drop_remainder=True"),
    ({"data.image_size": 16}, r"an image has 8x8 pixels .*config.data.image_size is 16"),
    ({"data.train_split": "all"}, r'"all"; digits has train and test'),
    ({"data.dataset": "digit"}, r'config.data.dataset is "digit"'),
  ],
)
def test_data_that_do_not_fit_are_refused(config, settings, message):
  config.update_from_flattened_dict(settings)
  with pytest.raises(UserError, match=message):
    open_split(config, mesh_lib.make_mesh(), config.data.train_split, train=True)


def test_evaluation_batches_have_to_be_shared_too(config):
  config.data.eval_batch_size = 361
  with pytest.raises(UserError, match=r"config.data.eval_batch_size is 361"):
    open_split(config, mesh_lib.make_mesh(), "test", train=False)


def test_the_config_decides_the_crops(image_folder, config):
  config.data.update(dataset="folder", data_dir=str(image_folder), image_size=32, batch_size=8)
  config.data.update(crop="random_resized", crop_scale=(0.5, 0.6), crop_ratio=(1.0, 1.1))
  config.data.update(crop_interpolation="bilinear", eval_crop_fraction=0.8, cache="none")
  config.model.num_classes = 2
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)
  batches, _ = open_split(config, mesh_lib.make_mesh(), "train", train=True)
  assert batches.preprocess == Preprocess(
    image_size=32,
    crop="random_resized",
    scale=(0.5, 0.6),
    ratio=(1.0, 1.1),
    interpolation="bilinear",
    eval_fraction=0.8,
  )


def test_images_of_one_size_are_cropped_on_the_device(config):
  config.data.update(crop="random_resized", crop_scale=(0.75, 1.0), cache="device")
  batches, _ = open_split(config, mesh_lib.make_mesh(), "train", train=True)
  assert batches.preprocess.crop == "none"
  scale, ratio = (0.75, 1.0), (3 / 4, 4 / 3)
  assert make_augmentation(config, mesh_lib.make_mesh()).resized_crop == (scale, ratio, "random")
  config.data.cache = "none"  # then the host decodes and crops
  assert make_augmentation(config, mesh_lib.make_mesh()).resized_crop is None


@pytest.mark.parametrize(
  ("settings", "unit"),
  [({"data.group_size": 4}, 4), ({"data.group_size": 4, "optimizer.accumulate_steps": 8}, 32)],
)
def test_the_last_batch_has_to_be_of_whole_groups(config, settings, unit):
  config.data.drop_remainder = False
  config.update_from_flattened_dict(settings)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  with pytest.raises(UserError, match=rf"a last batch of 29 .* = {unit}: .*drop_remainder=True"):
    open_split(config, mesh, "train", train=True)


def test_a_damaged_first_image_is_found_at_once_if_none_may_be_skipped(
  image_folder, tmp_path, config
):
  root = shutil.copytree(image_folder, tmp_path / "photos")
  file = root / "train" / "ant" / "0.jpg"
  file.write_bytes(b"not a JPEG")
  config.data.update(dataset="folder", data_dir=str(root), image_size=40, batch_size=8)
  config.model.num_classes = 2
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)
  config.run.max_damaged = 0
  with pytest.raises(UserError, match=re.escape(str(file)) + ": an image of 10 bytes cannot"):
    open_split(config, mesh_lib.make_mesh(), "train", train=True)


@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_batches_are_the_same_wherever_the_images_lie(tfds_dir, tmp_path, config, cache, damaged):
  config.data.update(dataset="ants_and_bees", data_dir=str(tfds_dir), image_size=40, batch_size=8)
  config.model.num_classes = 2
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)
  if damaged:
    root = shutil.copytree(tfds_dir, tmp_path / "tfds")
    spoil_record(next(root.rglob("*-train.array_record*")), 2)
    config.data.data_dir = str(root)
  mesh = mesh_lib.make_mesh()
  config.data.cache = "none"
  expected, _ = open_split(config, mesh, "train", train=True)
  config.data.cache = cache
  batches, feed = open_split(config, mesh, "train", train=True)
  assert batches.index_only == (cache == "device")
  for number, batch in enumerate(batches.iterate(0, 3)):
    found = feed(batch)
    assert set(found) == {"image", "label", "mask"}
    for name, values in expected[number].items():
      np.testing.assert_array_equal(found[name], values)
  assert len(batches.damage.reasons) == damaged
