import ast
import pathlib
import re
import shlex
import sys

import jax
from ml_collections import ConfigDict
import numpy as np
import PIL.Image
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax import main
from convmixer_jax.augment import rectangle
from convmixer_jax.data import class_names
from convmixer_jax.sweep import combinations, parameter_count
from convmixer_jax.training import evaluate, loop

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_is_whole_and_tells_its_command(path):
  config_lib.validate(config_lib.read(path))
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert f"--config=configs/{path.name}" in docstring or "launch/local.sh" in docstring
  assert "Reaches:" in docstring
  assert len(path.read_text().splitlines()) <= 60


def test_recipes_are_the_authors():
  settings = {path.stem: config_lib.flatten(config_lib.read(path)) for path in CONFIGS}
  widths = {name: (s["model.dim"], s["model.depth"], s["model.kernel_size"], s["model.patch_size"])
            for name, s in settings.items()}  # fmt: skip
  assert widths["imagenet_1536_20"] == (1536, 20, 9, 7)
  assert widths["imagenet_768_32"] == (768, 32, 7, 7)
  assert widths["imagenet_1024_20"] == (1024, 20, 9, 14)
  assert widths["cifar10_256_8"] == (256, 8, 5, 2)
  assert widths["cifar10_cpu"] == (64, 4, 5, 4)
  assert settings["imagenet_768_32"]["model.activation"] == "relu"
  assert settings["imagenet_768_32"]["run.epochs"] == 300
  paper = settings["imagenet_1536_20"]
  assert (paper["optimizer.eps"], paper["optimizer.weight_decay"]) == (1e-3, 2e-5)
  assert (paper["optimizer.clip_norm"], paper["optimizer.decay"]) == (1.0, "kernels")
  cpu = settings["cifar10_cpu"]
  assert (cpu["optimizer.decay"], cpu["optimizer.eps"], cpu["optimizer.clip_norm"]) == (
    "all", 1e-8, None)  # fmt: skip


def test_what_was_trained_with_keras_has_its_epsilon():
  for path in CONFIGS:
    optimizer = config_lib.read(path).optimizer
    is_keras = path.stem.startswith(("cifar10_keras", "cifar10_tf"))
    assert (optimizer.eps == 1e-7) == is_keras, path
    assert optimizer.eps_hat == (is_keras or "labml" in path.stem), path


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("imagenet_1536_20", 51_625_960),
    ("imagenet_768_32", 21_110_248),
    ("imagenet_1024_20", 24_383_464),
    ("cifar10_256_8", 594_186),
    ("cifar10_256_8_p1_k9", 706_570),
    ("cifar10_256_16_p1_k9", 1_409_034),
    ("cifar10_tf_128_4", 103_434),
    ("cifar10_tf_128_8", 204_810),
    ("cifar10_tf_128_12", 306_186),
    ("cifar10_tf_phase1", 103_434),
    ("cifar10_tf_onecycle", 103_434),
    ("cifar10_flux_128_8", 190_602),
    ("cifar10_labml_256_8", 643_338),
  ],
)
def test_parameters_are_those_of_the_source(name, count):
  assert parameter_count(config_lib.read(ROOT / "configs" / f"{name}.py")) == count


@pytest.mark.parametrize("depth", [4, 8, 12])
def test_the_study_flips_and_crops_as_imgaug_does(depth):
  """imgaug crops 0 or 1 pixel off each side: lengths 30, 31 and 32 with 1/4, 1/2 and 1/4."""
  config = config_lib.read(ROOT / "configs" / f"cifar10_tf_128_{depth}.py")
  assert config.augment.flip
  data = config.data
  assert (data.crop, data.crop_interpolation) == ("random_resized", "bilinear")
  _, _, height, width = rectangle.draw(
    jax.random.key(0),
    (20_000, 32, 32),
    area=data.crop_scale,
    ratio=data.crop_ratio,
    largest=(32, 32),
    fallback=(32, 32),
  )
  for side in (height, width):
    shares = np.bincount(side, minlength=33) / len(side)
    np.testing.assert_allclose(shares[30:], [0.25, 0.5, 0.25], atol=0.08)
    assert shares[:29].sum() == 0
  assert abs(float((height * width).mean()) - 31**2) < 5


def test_earlier_phases_of_the_study():
  for name in ("cifar10_tf_phase1", "cifar10_tf_onecycle", "cifar10_tf_sweep"):
    config = config_lib.read(ROOT / "configs" / f"{name}.py")
    assert (config.data.crop, config.augment.policy) == ("none", None)
    assert config.augment.flip == (config.augment.zoom == 0.1) == (name != "cifar10_tf_phase1")


def test_the_authors_answer():
  config = config_lib.read(ROOT / "configs" / "cifar10_256_16_p1_k9.py")
  assert (config.model.dim, config.model.depth) == (256, 16)
  assert (config.model.kernel_size, config.model.patch_size) == (9, 1)
  assert (config.data.batch_size, config.data.crop_scale) == (128, (0.75, 1.0))
  assert config.optimizer.weight_decay == 2e-5


@pytest.mark.parametrize("layout", ["", "train/"])
@pytest.mark.slow
def test_folder_starts_with_nothing_but_a_directory(tmp_path, layout):
  """With two dozen photos of different sizes; the model is small to compile quickly."""
  random, root = np.random.RandomState(0), tmp_path / "photos"
  for i in range(24):
    path = root / layout / "abc"[i % 3] / f"{i}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.randint(0, 256, (40 + 3 * i, 200 - i, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(path)
  config = config_lib.read(ROOT / "configs" / "folder.py")
  config.data.data_dir = str(root)
  config.model.update(dim=8, depth=1)
  config.run.max_steps = 2
  loop.train(config, tmp_path / "run")
  loop.train(config, tmp_path / "run")  # the same run, already finished
  saved = config_lib.read_json(tmp_path / "run" / "config.json")
  assert saved.model.num_classes == 3
  found = evaluate.evaluate_checkpoint(saved, tmp_path / "run")
  assert found == evaluate.evaluate_checkpoint(config, tmp_path / "run")
  assert (found["step"], found["num_examples"]) == (2, 3)
  assert class_names.read(tmp_path / "run") == ("a", "b", "c")


def test_the_commands_of_the_recipes_page_are_valid():
  """Its configs exist and accept the settings of its sweeps and ablations."""
  page = (ROOT / "docs" / "recipes.md").read_text()
  assert {path.name for path in CONFIGS} >= set(re.findall(r"`(\w+\.py)`", page))
  sweeps = [shlex.split(line) for line in page.splitlines() if "convmixer_jax.sweep" in line]
  sizes = []
  for words in sweeps:
    (path,) = (word.removeprefix("--config=") for word in words if word.startswith("--config="))
    over = [word.removeprefix("--over=") for word in words if word.startswith("--over=")]
    sizes.append(len(combinations(config_lib.read(ROOT / path), over)))
  assert sizes == [3, 4, 3]
  rows = [line.split("|") for line in page.partition("## Ablations")[2].splitlines()]
  ablations = [row[3].strip(" `").split() for row in rows if len(row) == 5 and "--config" in row[3]]
  assert len(ablations) == 8
  for flags in ablations:
    config = config_lib.read(ROOT / "configs" / "cifar10_256_16_p1_k9.py")
    before = config_lib.flatten(config)
    pairs = [flag.removeprefix("--config.").split("=") for flag in flags]
    for key, text in pairs:
      value = text if isinstance(before[key], str) else type(before[key])(float(text))
      assert value != before[key]
      config.update_from_flattened_dict({key: value})
    config_lib.validate(config)


@pytest.fixture
def read_keys(monkeypatch):
  """The config keys read by any module outside `config/`, which checks all of them."""
  sections = {"": config_lib.base()}
  sections |= {name: value for name, value in sections[""].items() if isinstance(value, ConfigDict)}
  prefixes = {frozenset(s.keys()): f"{name}." if name else "" for name, s in sections.items()}
  found, readers = set(), []
  get, to_dict = ConfigDict.__getitem__, ConfigDict.to_dict

  def note(section, keys):
    frame = sys._getframe(2)
    while "ml_collections" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
      frame = frame.f_back
    readers.append(frame.f_code.co_filename)
    if pathlib.Path(readers[-1]).parent != pathlib.Path(config_lib.__file__).parent:
      prefix = prefixes.get(frozenset(section._fields))
      found.update(f"{prefix}{key}" for key in keys)

  def noted_get(self, key):
    note(self, [key])
    return get(self, key)

  def noted_to_dict(self, *arguments, **options):
    note(self, self._fields)
    return to_dict(self, *arguments, **options)

  monkeypatch.setattr(ConfigDict, "__getitem__", noted_get)
  monkeypatch.setattr(ConfigDict, "to_dict", noted_to_dict)
  return found


def test_every_setting_is_read(read_keys, run_command, tmp_path):
  """By the command or anything it calls, in a run of two steps."""
  flags = ["model.dim=8", "model.depth=1", "model.patch_size=2", "run.max_steps=2"]
  run_command(main, f"--workdir={tmp_path}", *(f"--config.{flag}" for flag in flags))
  only_with_several_processes = {"run.stall_seconds"}
  keys = set(config_lib.flatten(config_lib.base()))
  unread = keys - read_keys - only_with_several_processes
  assert not unread, f"nothing reads {sorted(unread)}"
