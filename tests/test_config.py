import json
import re

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
    (
      "model.depthwise",
      "cudnn",
      r"config.model.depthwise is 'cudnn'; allowed: .*taps, xla, native",
    ),
    ("data.cache", "disk", r"config.data.cache is 'disk'; allowed: none, host, device"),
    ("augment.erase_mode", "noise", r"erase_mode is 'noise'; allowed: pixel, constant"),
    ("optimizer.decay", "some", r"config.optimizer.decay is 'some'; allowed: all, kernels"),
    ("optimizer.decay_kind", "l1", r"decay_kind is 'l1'; allowed: adamw, unscaled, l2"),
    ("step.loss", "median", r"config.step.loss is 'median'; allowed: mean, sum"),
    ("schedule.name", "step", r"config.schedule.name is 'step'; allowed: onecycle, cosine"),
    ("data.batch_size", 0, r"config.data.batch_size is 0; it must be greater than 0"),
    ("optimizer.weight_decay", -1.0, r"config.optimizer.weight_decay is -1.0; .* 0 or greater"),
    ("optimizer.clip_norm", 0.0, r"config.optimizer.clip_norm is 0.0; .* greater than 0"),
    ("model.patch_size", 3, r"patch_size is 3, which does not divide config.data.image_size=8"),
    ("augment.mean", (0.5, 0.5), r"config.augment.mean=\(0.5, 0.5\) .* each channel"),
    ("augment.policy", "rand-m9-x1", r"'x1' is unknown"),
    ("augment.label_smoothing", 1.0, r"config.augment.label_smoothing is 1.0; .* in \[0, 1\)"),
    ("augment.erase_probability", 1.5, r"erase_probability is 1.5; .* in \[0, 1\]"),
    (
      "optimizer.learning_rate",
      float("inf"),
      r"learning_rate is inf; only finite numbers",
    ),
    ("model.dropout", float("nan"), r"config.model.dropout is nan; only finite numbers"),
    ("augment.mean", (float("-inf"),), r"config.augment.mean is \(-inf,\); only finite"),
    ("augment.std", ("a",), r"config.augment.std is \('a',\); only finite numbers are allowed"),
    ("data.group_size", 48, r"group_size is 48, which does not divide the 64 images"),
    ("parallel.remat", "True", r"remat is 'True'; allowed: none, activations, blocks"),
    ("step.accumulate_steps", 3, r"accumulate_steps is 3, .* config.data.batch_size=64"),
  ],
)
def test_a_wrong_setting_is_named(config, key, value, message):
  validate(config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    validate(config)


def test_a_warm_up_is_shorter_than_the_run(config):
  config.schedule.update(name="cosine", warmup_epochs=20)
  with pytest.raises(UserError, match=r"less than .*=20: .*--config.schedule.warmup_epochs=10"):
    validate(config)
  config.schedule.warmup_epochs = 10
  validate(config)


def test_groups_are_of_the_parts_of_a_batch_and_even_where_pairs_are_mixed(config):
  config.data.group_size, config.step.accumulate_steps = 8, 4
  validate(config)
  config.step.accumulate_steps = 16
  with pytest.raises(UserError, match=r"8, which does not divide the 4 images of .*batch_size=64"):
    validate(config)
  config.step.accumulate_steps, config.data.group_size = 1, 1
  validate(config)
  config.augment.cutmix_alpha = 0.5
  with pytest.raises(UserError, match="mix pairs of images, but a group has 1: set an even"):
    validate(config)


def test_unknown_keys_and_wrong_types_are_refused(config):
  with pytest.raises(AttributeError, match="learning_rat"):
    config.optimizer.learning_rat = 0.1
  with pytest.raises(TypeError, match="batch_size"):
    config.data.batch_size = "many"


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("model.dim", "32", 32),
    ("optimizer.clip_norm", "2", 2.0),
    ("optimizer.clip_norm", "None", None),
    ("optimizer.learning_rate", "1e-3", 1e-3),
    ("parallel.scan", "True", True),
    ("parallel.scan", "false", False),
    ("augment.policy", "None", None),
    ("augment.policy", "rand-m9-mstd0.5", "rand-m9-mstd0.5"),
    ("augment.mean", "(0.5, 1)", (0.5, 1)),
    ("augment.mean", "0.5,0.25", (0.5, 0.25)),
    ("augment.mean", "0.5", (0.5,)),
    ("seed", "-1", -1),
  ],
)
def test_a_setting_on_the_command_line_has_the_type_of_its_key(config, key, text, value):
  config_lib.override(config, key, text)
  found = flatten(config)[key]
  assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
  ("key", "text", "message"),
  [
    ("model.dmi", "3", r"^config.model.dmi does not exist; did you mean config.model.dim\? config"),
    ("modl.dim", "3", r"^config.modl.dim does not .* config.model.dim\? config.model has: act"),
    ("modl.dmi", "3", r"^config.modl.dmi does not .* config.model.dim\? config.model has: act"),
    ("optimizer.loss", "sum", r"^config.optimizer.loss does .* did you mean config.step.loss\?"),
    ("learning_rate", "3", r"did you mean config.optimizer.learning_rate\? config has: .*model"),
    ("model.dim.x", "3", r"^config.model.dim.x does not exist; config.model has: "),
    ("nonsense.x", "3", r"^config.nonsense.x does not exist; config has: "),
    ("model", "3", r"^config.model is a section, not a setting; config.model has: activation"),
    ("model.dim", "1.5", r"^config.model.dim is '1.5'; it must be an integer$"),
    ("optimizer.eps", "small", r"^config.optimizer.eps is 'small'; it must be a number$"),
    ("augment.flip", "2", r"^config.augment.flip is '2'; it must be true or false$"),
    ("augment.mean", "a", r"^config.augment.mean is 'a'; it must be numbers such as \(0.5,0.25"),
    ("augment.mean", "('a',)", r"^config.augment.mean is .* it must be numbers such as"),
  ],
)  # fmt: skip
def test_a_wrong_setting_on_the_command_line_is_named(config, key, text, message):
  before = flatten(config)
  with pytest.raises(UserError, match=message):
    config_lib.override(config, key, text)
  assert flatten(config) == before


def test_a_config_is_a_path_or_a_name(configs, tmp_path, monkeypatch):
  assert config_lib.names() == sorted(path.stem for path in configs.glob("*.py"))
  monkeypatch.chdir(tmp_path)
  for name in ("digits", "digits.py"):
    assert config_lib.path_of(name).samefile(configs / "digits.py")
  (tmp_path / "digits.py").touch()
  assert config_lib.path_of("digits.py").samefile(tmp_path / "digits.py")
  assert config_lib.path_of("digits").samefile(configs / "digits.py")
  for wrong in ("digit", "configs/digits.py", "mine/digist.py"):
    message = f"--config={wrong} is neither .* Did you mean digits\\? .*cifar10_cpu, "
    with pytest.raises(UserError, match=message):
      config_lib.path_of(wrong)


START = """from convmixer_jax.config import base
def get_config():
  config = base()
"""


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      START + "  config.run.epochs = epochs\n  return config",
      r", line 4: NameError: name 'epochs'",
    ),
    (START + "  config.run.epochs == = 3", r", line 4: SyntaxError: invalid syntax$"),
    (START + "  config.model.dmi = 3", r", line 4: the key dmi does not exist; did .*model.dim\?"),
    (START + "  config.model.update(dmi=3)", r", line 4: the key dmi does not .*model.dim\?"),
    (
      START + "  config.modl.dim = 3",
      r", line 4: the key modl does not .* did you mean config.model",
    ),
    (
      START + "  config.run.epochs = config.run.epoch",
      r", line 4: the key epoch .*config.run.epochs",
    ),
    (START + "  config.model.dim = 'x'", r", line 4: TypeError: Could not override field 'dim'"),
    (START + "  raise KeyError('x')", r", line 4: KeyError: x$"),
    (
      START + "  open('/none')",
      r", line 4: FileNotFoundError: .*: '/none'$",
    ),
    (START + "  return helper()\ndef helper():\n  1 / 0", r", line 6: ZeroDivisionError: "),
    (START, r", line 2: get_config\(\) returns NoneType, not a ConfigDict. Start from .*base\(\)"),
    ("import none_such", r", line 1: ModuleNotFoundError: No module named 'none_such'"),
    ("config = 3", r" does not define get_config\(\)"),
    ("\0", r".*null bytes"),
  ],
)
def test_a_mistake_in_a_config_file_is_one_line_with_file_and_line(tmp_path, text, message):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(UserError, match="^" + re.escape(str(path)) + message) as error:
    config_lib.read(path)
  assert "\n" not in str(error.value)
  # The same if another config extends it.
  child = tmp_path / "child.py"
  child.write_text(
    "import pathlib\nfrom convmixer_jax.config import read\n"
    "def get_config():\n  return read(pathlib.Path(__file__).with_name('mine.py'))"
  )
  with pytest.raises(UserError, match="^" + re.escape(str(error.value)) + "$"):
    config_lib.read(child)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      "del fields['optimizer']",
      r"no config.optimizer. Start from convmixer_jax.config.base",
    ),
    ("del fields['model']['dim']", r"no config.model.dim. Start"),
    (
      "fields['model']['dmi'] = 3",
      r"config.model.dmi, which .*did you mean config.model.dim\?",
    ),
    ("fields['optimizer']['learning_rate'] = 1", r"rate of type int, which must be float. Start"),
  ],
)
def test_a_config_of_its_own_making_needs_the_keys_of_base(tmp_path, configs, change, message):
  path = tmp_path / "mine.py"
  path.write_text(f"""
import pathlib
from convmixer_jax.config import base, read
from ml_collections import ConfigDict
def get_config():
  digits = read(pathlib.Path({str(configs / "digits.py")!r}))
  fields = digits.to_dict(preserve_field_references=True)
  {change}
  return ConfigDict(fields)
""")
  with pytest.raises(UserError, match=rf"mine.py, line 5: get_config\(\) returns .*{message}"):
    config_lib.read(path)
  path.write_text(path.read_text().replace(change, "pass"))
  validate(config_lib.read(path))


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
  with pytest.raises(UserError, match=r"must be the directory of a run"):
    read_json(tmp_path / "none.json")


def test_a_config_with_the_names_of_earlier_versions_is_read(config, tmp_path):
  path = tmp_path / "config.json"
  config.step.update(loss="sum", accumulate_steps=4, ema_decay=0.5)
  config.run.max_corrupt = 3
  write_json(config, path)
  fields = json.loads(path.read_text())
  fields["optimizer"] |= fields.pop("step")
  fields["run"]["max_damaged"] = fields["run"].pop("max_corrupt")
  path.write_text(json.dumps(fields))
  assert flatten(read_json(path)) == flatten(config)
  check_resumable(config, path)


@pytest.mark.parametrize(("old", "new"), [(False, "none"), (True, "blocks")])
def test_a_config_from_before_remat_had_kinds_is_read(config, tmp_path, old, new):
  path = tmp_path / "config.json"
  write_json(config, path)
  fields = json.loads(path.read_text())
  fields["parallel"]["remat"] = old
  path.write_text(json.dumps(fields))
  assert read_json(path).parallel.remat == new
  check_resumable(config, path)


def test_every_default_is_allowed_and_the_rest_has_to_be_set(config):
  required = set()
  for key, value in flatten(config_lib.base()).items():
    one = config.copy_and_resolve_references()
    one.update_from_flattened_dict({key: value})
    try:
      validate(one)
    except UserError as error:
      assert str(error).startswith(f"config.{key} is not set: ")
      required.add(key)
  assert required == {
    *("data.dataset", "data.image_size", "data.batch_size", "data.eval_batch_size"),
    *("augment.mean", "augment.std"),
    *("model.dim", "model.depth", "model.kernel_size", "model.patch_size"),
    *("optimizer.learning_rate", "optimizer.weight_decay", "run.epochs"),
  }
