import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax import convert, pretrained, storage
from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained import bundle, safetensors
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel
from convmixer_jax.training.loop import train

MODEL = ConvMixer(8, 2, 4, 2, 5, activation="relu")
NEEDS = Preprocessing(
  8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.75, ("ant", "bee", "cat", "dog", "elk")
)


@pytest.fixture
def variables():
  """Variables with non-initial running statistics."""
  variables = MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  return jax.tree.map(lambda x: x + jax.random.uniform(jax.random.key(1), x.shape), variables)


def save_bundle(path, variables):
  bundle.save(path, TrainedModel(MODEL, variables, "relu", NEEDS))


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_way_round_all_kinds_changes_no_bit(variables, tmp_path):
  save_bundle(tmp_path / "a", variables)
  way = [("a", "timm.safetensors", "timm"), ("timm.safetensors", "new/b", "timm"),
         ("new/b", "authors.safetensors", "sequential"),
         ("authors.safetensors", "again.safetensors", "timm"),
         ("again.safetensors", "c", "timm")]  # fmt: skip
  for source, target, layout in way:
    count = convert.convert(str(tmp_path / source), tmp_path / target, layout)
    assert count == sum(x.size for x in jax.tree.leaves(variables))
  found = bundle.load(tmp_path / "c")
  assert (found.model, found.activation, found.preprocessing) == (MODEL, "relu", NEEDS)
  assert_same_bits(found.variables, variables)
  names = [safetensors.read(tmp_path / f"{name}.safetensors")[0] for name in ("timm", "authors")]
  assert "stem.0.weight" in names[0] and "0.weight" in names[1]


def test_what_the_source_does_not_tell_stays_open(variables, tmp_path, caplog):
  """An assumed activation or preprocessing is not written to the target."""
  source = tmp_path / "plain.safetensors"
  pretrained.save(source, TrainedModel(MODEL, variables, None))
  for target in ("a.safetensors", "a"):
    convert.convert(str(source), tmp_path / target)
    assert "plain.safetensors does not state its activation; assuming 'gelu'" in caplog.text
    assert "--activation=relu" in caplog.text
    caplog.clear()
    found = pretrained.read(tmp_path / target)
    assert (found.activation, found.preprocessing) == (None, None)
    assert f"{target} does not state its activation" in caplog.text  # every time
    caplog.clear()
  for target in ("b.safetensors", "b"):  # the flag is stored, also in a directory
    convert.convert(str(tmp_path / "a"), tmp_path / target, activation="relu")
    assert pretrained.load(tmp_path / target)[0].activation == "relu"
    assert not caplog.text


def test_targets_are_checked_before_anything_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(pretrained, "read", lambda *_, **__: pytest.fail("too late"))
  (tmp_path / "file").touch()
  for target, message in (
    ("file", "file exists already"),
    ("a.onnx", "a.onnx ends with .onnx"),
    ("file/a.safetensors", r"a.safetensors cannot be written to \(.*file: Not a directory\)"),
  ):
    with pytest.raises(UserError, match=message):
      convert.convert("source", tmp_path / target)

  def read_only(dir):
    raise OSError(30, "Read-only file system")

  monkeypatch.setattr(storage.tempfile, "TemporaryFile", read_only)
  with pytest.raises(UserError, match=r"new/b cannot be written to .*: Read-only file system"):
    convert.convert("source", tmp_path / "new" / "b")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
  told = pretrained.read(tmp_path / "digits.safetensors").preprocessing
  assert told == Preprocessing(8, (0.3053,), (0.3761,), 1.0, tuple("0123456789"))


def test_what_is_read_again_and_differs_is_removed(variables, tmp_path, monkeypatch):
  save_bundle(tmp_path / "a", variables)
  save = pretrained.save

  def corrupt(path, weights, **options):
    stats = jax.tree.map(lambda x: jnp.nextafter(x, 9.0), variables["batch_stats"])
    changed = {**variables, "batch_stats": stats}
    save(path, dataclasses.replace(weights, variables=changed), **options)

  monkeypatch.setattr(pretrained, "save", corrupt)
  with pytest.raises(UserError, match="was read back with other content"):
    convert.convert(str(tmp_path / "a"), tmp_path / "b.safetensors")
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command(variables, tmp_path, run_command):
  save_bundle(tmp_path / "a", variables)
  target = tmp_path / "b.safetensors"
  assert run_command(convert, tmp_path / "a", target, "--layout=sequential").startswith(
    f"{target}: "
  )
  for arguments, message in (
    (("a", "b.safetensors"), "b.safetensors exists already"),
    (("a", "b.onnx"), "ends with .onnx: the target must be a .safetensors file"),
    (("none", "c"), "is not a file, the workdir of a run, or a model"),
    (("a",), "expected a source and a target, got 1 names"),
  ):
    with pytest.raises(UserError, match=message) as error:
      run_command(convert, *(tmp_path / name for name in arguments))
    assert "\n" not in str(error.value)
