import ast
import pathlib
import re

import pytest

from convmixer_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
CODE = {path: path.read_text() for path in (ROOT / "convmixer_jax").rglob("*.py")}


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
    assert (optimizer.eps_hat, optimizer.eps == 1e-7) == (is_keras, is_keras), path


def test_every_setting_is_read():
  others = "\n".join(text for path, text in CODE.items() if path.name != "config.py")
  for key in config_lib.flatten(config_lib.base()):
    section, _, name = key.rpartition(".")
    # Whole sections are handed over as keyword arguments.
    assert re.search(rf"\b{name}\b", others), f"nothing reads config.{key}"
    assert section in ("", "data", "augment", "model", "optimizer", "schedule", "run", "parallel")
