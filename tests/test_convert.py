import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import bundle, convert, pretrained
from convmixer_jax import config as config_lib
from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer
from convmixer_jax.train import train

ROOT = pathlib.Path(__file__).parents[1]
MODEL = ConvMixer(8, 2, 4, 2, 5, activation="relu")


@pytest.fixture
def variables():
  """With statistics that are not those of the initialisation."""
  variables = MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  return jax.tree.map(lambda x: x + jax.random.uniform(jax.random.key(1), x.shape), variables)


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_way_round_all_kinds_changes_no_bit(variables, tmp_path):
  bundle.save(tmp_path / "a", MODEL, variables)
  way = [("a", "timm.safetensors", "timm"), ("timm.safetensors", "new/b", "timm"),
         ("new/b", "authors.safetensors", "sequential"),
         ("authors.safetensors", "again.safetensors", "timm"),
         ("again.safetensors", "c", "timm")]  # fmt: skip
  for source, target, layout in way:
    count = convert.convert(str(tmp_path / source), tmp_path / target, layout)
    assert count == sum(x.size for x in jax.tree.leaves(variables))
  model, found = bundle.load(tmp_path / "c")
  assert model == MODEL  # the activation too
  assert_same_bits(found, variables)
  names = [pretrained._read(tmp_path / f"{name}.safetensors")[0] for name in ("timm", "authors")]
  assert "stem.0.weight" in names[0] and "0.weight" in names[1]


def test_a_runs_workdir(configs, tmp_path):
  config = config_lib.read(configs / "digits.py")
  config.model.update(dim=8, depth=1, kernel_size=3, patch_size=2)
  config.run.update(epochs=1, max_steps=1)
  train(config, tmp_path / "run")
  convert.convert(str(tmp_path / "run"), tmp_path / "digits.safetensors")
  _, expected = pretrained.load(tmp_path / "run")
  model, found = pretrained.load(tmp_path / "digits.safetensors")
  assert_same_bits(found, expected)
  assert (model.dim, model.num_classes) == (8, 10)


def test_what_is_read_again_and_differs_is_removed(variables, tmp_path, monkeypatch):
  bundle.save(tmp_path / "a", MODEL, variables)
  save = pretrained.save_torch

  def damaged(path, model, variables, **options):
    stats = jax.tree.map(lambda x: jnp.nextafter(x, 9.0), variables["batch_stats"])
    save(path, model, {**variables, "batch_stats": stats}, **options)

  monkeypatch.setattr(pretrained, "save_torch", damaged)
  with pytest.raises(UserError, match="was not what was written"):
    convert.convert(str(tmp_path / "a"), tmp_path / "b.safetensors")
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command(variables, tmp_path):
  bundle.save(tmp_path / "a", MODEL, variables)

  def command(*arguments):
    return subprocess.run(
      [sys.executable, "-m", "convmixer_jax.convert", *map(str, arguments)],
      cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300,
    )  # fmt: skip

  good = command(tmp_path / "a", tmp_path / "b.safetensors", "--layout=sequential")
  assert good.returncode == 0, good.stderr
  assert good.stdout.startswith(f"{tmp_path / 'b.safetensors'}: ")
  for arguments, message in (
    (("a", "b.safetensors"), "b.safetensors exists already"),
    (("a", "b.onnx"), "ends with .onnx: a target is a .safetensors file"),
    (("none", "c"), "is no file, no workdir of a run, and no model"),
    (("a",), "a source and a target are needed, not 1 names"),
  ):
    run = command(*(tmp_path / name for name in arguments))
    assert run.returncode == 1
    assert run.stderr.startswith("error: ") and message in run.stderr
    assert len(run.stderr.splitlines()) == 1
