import json

import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.config import check_resumable, flatten, read_json, validate, write_json
from convmixer_jax.errors import UserError


@pytest.fixture
def config(configs):
  return config_lib.read(configs / "digits.py")


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("data.dataset", None, r"config.data.dataset is not set: .*--config.data.dataset="),
    ("data.crop", "center", r"config.data.crop is 'center'; allowed: none, random_resized"),
    ("data.crop_interpolation", "area", r"is 'area'; allowed: random, bilinear, bicubic"),
    ("model.dtype", "float16", r"config.model.dtype is 'float16'; allowed: float32, bfloat16"),
    (
      "model.activation",
      "elu",
      r"config.model.activation is 'elu'; allowed: gelu, gelu_tanh, relu",
    ),
    ("optimizer.decay", "some", r"config.optimizer.decay is 'some'; allowed: all, kernels"),
    ("schedule.name", "step", r"config.schedule.name is 'step'; allowed: onecycle, cosine"),
    ("data.batch_size", 0, r"config.data.batch_size is 0; it has to be greater than 0"),
    ("optimizer.weight_decay", -1.0, r"config.optimizer.weight_decay is -1.0; .* 0 or greater"),
    ("optimizer.clip_norm", 0.0, r"config.optimizer.clip_norm is 0.0; .* greater than 0"),
    ("model.patch_size", 3, r"patch_size is 3, which does not divide config.data.image_size=8"),
    ("augment.mean", (0.5, 0.5), r"config.augment.mean=\(0.5, 0.5\) .* each channel"),
    ("augment.policy", "rand-m9-x1", r"'x1' is unknown"),
    ("augment.label_smoothing", 1.0, r"config.augment.label_smoothing is 1.0; .* in \[0, 1\)"),
    ("augment.erase_probability", 1.5, r"erase_probability is 1.5; .* in \[0, 1\]"),
    ("data.group_size", 48, r"group_size is 48, which does not divide the 64 images"),
    ("optimizer.accumulate_steps", 3, r"accumulate_steps is 3, .* config.data.batch_size=64"),
  ],
)
def test_a_wrong_setting_is_named(config, key, value, message):
  validate(config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    validate(config)


def test_a_warm_up_is_shorter_than_the_run(config):
  config.schedule.update(name="cosine", warmup_epochs=20)
  with pytest.raises(UserError, match=r"nothing of .*=20: .*--config.schedule.warmup_epochs=10"):
    validate(config)
  config.schedule.warmup_epochs = 10
  validate(config)


def test_groups_are_of_the_parts_of_a_batch_and_even_where_pairs_are_mixed(config):
  config.data.group_size, config.optimizer.accumulate_steps = 8, 4
  validate(config)
  config.optimizer.accumulate_steps = 16
  with pytest.raises(UserError, match=r"8, which does not divide the 4 images of .*batch_size=64"):
    validate(config)
  config.optimizer.accumulate_steps, config.data.group_size = 1, 1
  validate(config)
  config.augment.cutmix_alpha = 0.5
  with pytest.raises(UserError, match="mix pairs of images, but a group has 1: set an even"):
    validate(config)


def test_unknown_keys_and_wrong_types_are_refused(config):
  with pytest.raises(AttributeError, match="learning_rat"):
    config.optimizer.learning_rat = 0.1
  with pytest.raises(TypeError, match="batch_size"):
    config.data.batch_size = "many"


def test_json_gives_the_config_back(config, tmp_path):
  write_json(config, tmp_path / "run" / "config.json")
  again = read_json(tmp_path / "run" / "config.json")
  validate(again)
  assert flatten(again) == flatten(config)
  assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["dim"] == 64


def test_only_the_run_section_may_change(config, tmp_path):
  path = tmp_path / "config.json"
  check_resumable(config, path)  # there is none yet
  write_json(config, path)
  config.run.epochs = 7
  check_resumable(config, path)
  config.optimizer.learning_rate = 0.5
  config.model.depth = 2
  before = path.read_text()
  with pytest.raises(UserError) as error:
    check_resumable(config, path)
  assert "config.model.depth was 4 and is 2" in str(error.value)
  assert "config.optimizer.learning_rate was 0.01 and is 0.5" in str(error.value)
  assert "epochs" not in str(error.value)
  assert path.read_text() == before


@pytest.mark.parametrize("text", ["", '{"model": 3}', '{"nonsense": 1}', "[1]"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config.json is not the config of a run"):
    read_json(tmp_path / "config.json")
  with pytest.raises(UserError, match=r"has to be that of a run"):
    read_json(tmp_path / "none.json")
