import ast
import re
import shlex
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.data.preprocess import Preprocess
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import sharding
from convmixer_jax.training.build import make_augmentation, open_split, resolve
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
    ({"augment.mean": (0.5,) * 3}, r"have 3 channels, but digits has 1"),
    ({"data.batch_size": 100}, r"config.data.batch_size is 100, which 8 devices .* multiple of 8,"),
    ({"data.batch_size": 1440}, r"only 1437 training examples: set at most \S+=1432"),
    ({"data.drop_remainder": False}, r"a last batch of 29 that 8 devices .*drop_remainder=True"),
    ({"data.image_size": 16}, r"an image has 8x8 pixels, .*config.data.image_size is 16"),
    ({"data.train_split": "all"}, r'"all"; digits has train and test'),
    ({"data.dataset": "digit"}, r'config.data.dataset is "digit"'),
  ],
)
def test_data_that_do_not_fit_are_refused(config, settings, message):
  config.update_from_flattened_dict(settings)
  with pytest.raises(UserError, match=message):
    open_split(config, sharding.make_mesh(), config.data.train_split, train=True)


def advice(message):
  """The settings that an error suggests: one {"section.key": value} for each alternative."""
  found = []
  for part in re.split(r"\bor\b", message):
    flags = [
      word for word in shlex.split(part.replace(" '--", " '--")) if word.startswith("--config.")
    ]
    pairs = (flag.removeprefix("--config.").rstrip(".,:").split("=", 1) for flag in flags)
    found.append({key: value for key, value in pairs})
  return [settings for settings in found if settings]


def follow(config, message):
  """Yields a copy of the config for each alternative that an error suggests, parsed like flags."""
  for settings in advice(message):
    changed = config.copy_and_resolve_references()
    for key, text in settings.items():
      try:
        value = ast.literal_eval(text)
      except (SyntaxError, ValueError):
        value = text
      changed.update_from_flattened_dict({key: value})
    yield changed


def start(config, mesh):
  """Runs all checks of a run, and builds all its batches."""
  config_lib.validate(config)
  config = resolve(config)
  for split, train in ((config.data.eval_split, False), (config.data.train_split, True)):
    batches, shard_batch = open_split(config, mesh, split, train=train)
    for batch in batches.iterate(0, len(batches)):
      shard_batch(batch)


def starts_after(config, mesh, *, steps=3):
  """Follows the advice of each error until the run starts."""
  try:
    start(config, mesh)
    return
  except UserError as error:
    message = str(error)
  assert steps, message
  followed = list(follow(config, message))
  assert followed, f"no advice: {message}"
  for changed in followed:
    starts_after(changed, mesh, steps=steps - 1)


def as_folder(config, root, **settings):
  config.data.update(dataset="folder", data_dir=str(root), image_size=40, batch_size=8, **settings)
  config.data.update(eval_batch_size=8)
  config.model.num_classes = 2
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)


@pytest.mark.parametrize(
  "settings",
  [
    {"model.num_classes": 9},
    {"augment.mean": (0.5,) * 3, "augment.std": (0.5,) * 3},
    {"data.batch_size": 102},
    {"data.batch_size": 3, "step.accumulate_steps": 2, "data.group_size": 3},
    {"data.batch_size": 1440},
    {"data.batch_size": 2000, "data.group_size": 10, "step.accumulate_steps": 5},
    {"data.batch_size": 2000, "data.drop_remainder": False},
    {"data.eval_batch_size": 361},
    {"data.drop_remainder": False},
    {"data.drop_remainder": False, "data.batch_size": 16, "data.group_size": 4},
    {"data.drop_remainder": False, "data.batch_size": 1434, "augment.mixup_alpha": 0.2},
    {"data.image_size": 16},
    {"data.image_size": 16, "data.cache": "none"},
    {"model.patch_size": 3},
    {"model.patch_size": 16},
    {"step.accumulate_steps": 3},
    {"data.group_size": 48},
    {"augment.mixup_alpha": 0.2, "data.group_size": 3},
    {"augment.cutmix_alpha": 0.2, "data.group_size": 1, "data.batch_size": 1},
    {"augment.mixup_alpha": 0.2, "step.accumulate_steps": 64},
  ],
  ids=str,
)
def test_the_advice_of_errors_works_on_digits(config, settings):
  config.update_from_flattened_dict(settings)
  mesh = sharding.make_mesh(jax.devices()[:4])
  with pytest.raises(UserError):
    start(config, mesh)
  starts_after(config, mesh)


@pytest.mark.parametrize("cache", ["none", "host", "device"])
@pytest.mark.parametrize("crop", ["none", "random_resized"])
def test_the_advice_works_for_images_of_many_sizes(config, image_folder, tmp_path, crop, cache):
  root = shutil.copytree(image_folder, tmp_path / "photos")
  as_folder(config, root, crop=crop, cache=cache)
  for file in (root / "train" / "ant" / "0.jpg", root / "test" / "bee" / "1.jpg"):
    PIL.Image.fromarray(np.zeros((50, 30, 3), np.uint8)).save(file)
  mesh = sharding.make_mesh()
  if (crop, cache) == ("random_resized", "none"):
    return start(config, mesh)
  with pytest.raises(UserError, match=r"50x30 pixels, .*--config.data.cache=none") as error:
    start(config, mesh)
  (changed,) = follow(config, str(error.value))
  return start(changed, mesh)


def test_the_advice_works_for_images_of_one_other_size(config, image_folder):
  as_folder(config, image_folder, cache="device")
  config.data.image_size = 16
  mesh = sharding.make_mesh()
  with pytest.raises(UserError, match=r"have this size, --config.data.image_size=40") as error:
    start(config, mesh)
  assert len(advice(str(error.value))) == 2
  starts_after(config, mesh)


@pytest.mark.parametrize(
  "settings", [{"data_dir": None}, {"eval_split": "dev"}, {"train_split": "all"}], ids=str
)
def test_the_advice_works_for_a_folder(config, image_folder, settings):
  as_folder(config, image_folder)
  config.data.update(**settings)
  mesh = sharding.make_mesh()
  with pytest.raises(UserError) as error:
    start(config, mesh)
  (changed,) = follow(config, str(error.value).replace("=DIR", f"={image_folder}"))
  start(changed, mesh)


def test_too_few_images_for_any_batch(config, image_folder):
  as_folder(config, image_folder, train_split="test")
  with pytest.raises(UserError, match=r"only 4 training examples: 8 devices .* need at least 8"):
    open_split(config, sharding.make_mesh(), "test", train=True)


def test_classes_are_counted_where_the_config_leaves_them_open(config, image_folder, tmp_path):
  as_folder(config, image_folder)
  assert resolve(config) is config
  config.model.kernel_size = 0
  with pytest.raises(UserError, match=r"config.model.kernel_size is 0; .* greater than 0"):
    resolve(config)
  config.model.kernel_size = 5
  config.model.num_classes = None
  config_lib.validate(config)
  assert resolve(config).model.num_classes == 2
  assert config.model.num_classes is None
  shutil.copytree(image_folder / "test" / "ant", tmp_path / "ant")
  config.data.update(data_dir=str(tmp_path), eval_split="validation")
  with pytest.raises(UserError, match="of one class, ant: classification takes two"):
    resolve(config)


def test_images_in_memory_are_cropped_too_without_a_cache(config):
  config.data.update(crop="random_resized", cache="none", image_size=16)
  batches, _ = open_split(config, sharding.make_mesh(), "train", train=True)
  assert batches[0]["image"].shape == (64, 16, 16, 1)
  assert not np.array_equal(batches[0]["image"], batches[len(batches)]["image"])


def test_evaluation_batches_have_to_be_shared_too(config):
  config.data.eval_batch_size = 361
  with pytest.raises(UserError, match=r"config.data.eval_batch_size is 361"):
    open_split(config, sharding.make_mesh(), "test", train=False)


def test_the_config_decides_the_crops(image_folder, config):
  config.data.update(dataset="folder", data_dir=str(image_folder), image_size=32, batch_size=8)
  config.data.update(crop="random_resized", crop_scale=(0.5, 0.6), crop_ratio=(1.0, 1.1))
  config.data.update(crop_interpolation="bilinear", eval_crop_fraction=0.8, cache="none")
  config.model.num_classes = 2
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)
  batches, _ = open_split(config, sharding.make_mesh(), "train", train=True)
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
  batches, _ = open_split(config, sharding.make_mesh(), "train", train=True)
  assert batches.preprocess.crop == "none"
  scale, ratio = (0.75, 1.0), (3 / 4, 4 / 3)
  assert make_augmentation(config, sharding.make_mesh()).resized_crop == (scale, ratio, "random")
  config.data.cache = "none"  # the host decodes and crops
  assert make_augmentation(config, sharding.make_mesh()).resized_crop is None


@pytest.mark.parametrize(
  ("settings", "unit"),
  [({"data.group_size": 4}, 4), ({"data.group_size": 4, "step.accumulate_steps": 8}, 32)],
)
def test_the_last_batch_has_to_be_of_whole_groups(config, settings, unit):
  config.data.drop_remainder = False
  config.update_from_flattened_dict(settings)
  mesh = sharding.make_mesh(jax.devices()[:1])
  with pytest.raises(
    UserError, match=rf"last batch of 29; .* multiple of {unit}: .*drop_remainder=True"
  ):
    open_split(config, mesh, "train", train=True)


def test_a_corrupt_first_image_is_found_at_once_if_none_may_be_skipped(
  image_folder, tmp_path, config
):
  root = shutil.copytree(image_folder, tmp_path / "photos")
  file = root / "train" / "ant" / "0.jpg"
  file.write_bytes(b"not a JPEG")
  config.data.update(dataset="folder", data_dir=str(root), image_size=40, batch_size=8)
  config.model.num_classes = 2
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)
  config.run.max_corrupt = 0
  with pytest.raises(UserError, match=re.escape(str(file)) + ": an image of 10 bytes cannot"):
    open_split(config, sharding.make_mesh(), "train", train=True)


@pytest.mark.parametrize("corrupt", [False, True], ids=["sound", "corrupt"])
@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_batches_are_the_same_wherever_the_images_lie(tfds_dir, tmp_path, config, cache, corrupt):
  config.data.update(dataset="ants_and_bees", data_dir=str(tfds_dir), image_size=40, batch_size=8)
  config.model.num_classes = 2
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)
  if corrupt:
    root = shutil.copytree(tfds_dir, tmp_path / "tfds")
    spoil_record(next(root.rglob("*-train.array_record*")), 2)
    config.data.data_dir = str(root)
  mesh = sharding.make_mesh()
  config.data.cache = "none"
  expected, _ = open_split(config, mesh, "train", train=True)
  config.data.cache = cache
  batches, shard_batch = open_split(config, mesh, "train", train=True)
  assert batches.index_only == (cache == "device")
  for number, batch in enumerate(batches.iterate(0, 3)):
    found = shard_batch(batch)
    assert set(found) == {"image", "label", "mask"}
    for name, values in expected[number].items():
      np.testing.assert_array_equal(found[name], values)
  assert len(batches.corrupt_examples.reasons) == corrupt
