import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax import bundle
from convmixer_jax.errors import UserError
from convmixer_jax.model import ConvMixer

MODEL = ConvMixer(8, 2, 3, 2, 5, activation="relu", norm_epsilon=1e-3)


@pytest.fixture
def written(tmp_path):
  """A directory, and the variables in it, of images with 13 channels."""
  variables = MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 13)))
  bundle.save(tmp_path / "model", MODEL, variables)
  return tmp_path / "model", variables


def test_model_and_bits_come_back(written):
  directory, variables = written
  assert bundle.is_bundle(directory) and not bundle.is_bundle(directory.parent)
  model, found = bundle.load(directory)
  assert model == MODEL
  assert jax.tree.structure(found) == jax.tree.structure(variables)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
    np.testing.assert_array_equal(a, b)


def test_nothing_is_written_over(written):
  directory, variables = written
  with pytest.raises(UserError, match="exists already"):
    bundle.save(directory, MODEL, variables)


@pytest.mark.parametrize(
  ("file", "text"),
  [
    ("model.json", "{"),
    ("model.json", '{"dim": 8}'),
    ("model.json", (
      '{"dim": 8, "depth": 2, "kernel_size": 5, "patch_size": 2, "num_classes": 5, "in_chans": 13}'
    )),
    ("arrays/_METADATA", "{"),
    ("arrays", None),
  ],
)  # fmt: skip
def test_damage_is_one_clear_line(written, file, text):
  directory, _ = written
  if text is None:
    shutil.rmtree(directory / file)
  else:
    (directory / file).write_text(text)
  with pytest.raises(UserError, match=r"model cannot be read: \w+: .+") as error:
    bundle.load(directory)
  assert "\n" not in str(error.value)
