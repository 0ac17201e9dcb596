import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convmixer_jax.errors import UserError
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.pretrained import bundle
from convmixer_jax.pretrained.trained import Preprocessing, TrainedModel

MODEL = ConvMixer(8, 2, 3, 2, 5, activation="relu", norm_epsilon=1e-3)
NEEDS = Preprocessing(32, (0.25,) * 13, (0.5,) * 13, 0.75, ("ant", "bee", "cat", "dog", "elk"))


@pytest.fixture
def written(tmp_path):
  """A saved directory and its model, for images of 13 channels."""
  variables = MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 13)))
  weights = TrainedModel(MODEL, variables, "relu", NEEDS)
  bundle.save(tmp_path / "model", weights)
  return tmp_path / "model", weights


def test_model_and_bits_come_back(written):
  directory, weights = written
  assert bundle.is_bundle(directory) and not bundle.is_bundle(directory.parent)
  found = bundle.load(directory)
  assert (found.model, found.activation, found.preprocessing) == (MODEL, "relu", NEEDS)
  assert jax.tree.structure(found.variables) == jax.tree.structure(weights.variables)
  both = map(jax.tree.leaves, (found.variables, weights.variables))
  for a, b in zip(*both, strict=True):
    np.testing.assert_array_equal(a, b)


def test_what_is_not_known_is_not_written(written, tmp_path):
  _, weights = written
  unknown = TrainedModel(MODEL.clone(activation="gelu"), weights.variables, None)
  bundle.save(tmp_path / "unknown", unknown)
  text = (tmp_path / "unknown" / "model.json").read_text()
  assert "activation" not in text and "gelu" not in text and "mean" not in text
  found = bundle.load(tmp_path / "unknown")
  assert (found.activation, found.preprocessing) == (None, None)


def test_nothing_is_written_over(written):
  directory, weights = written
  with pytest.raises(UserError, match="exists already"):
    bundle.save(directory, weights)


@pytest.mark.parametrize(
  ("file", "text"),
  [
    ("model.json", "{"),
    ("model.json", '{"dim": 8}'),
    ("model.json", (
      '{"dim": 8, "depth": 2, "kernel_size": 5, "patch_size": 2, "num_classes": 5, "in_chans": 13}'
    )),
    ("model.json", (
      '{"dim": 8, "depth": 2, "kernel_size": 3, "patch_size": 2, "num_classes": 5, "in_chans": 13,'
      '"pretrained_cfg": {"input_size": [13, 8, 8]}}'
    )),
    ("arrays/_METADATA", "{"),
    ("arrays", None),
  ],
)  # fmt: skip
def test_corruption_is_one_clear_line(written, file, text):
  directory, _ = written
  if text is None:
    shutil.rmtree(directory / file)
  else:
    (directory / file).write_text(text)
  with pytest.raises(UserError, match=r"model cannot be read: \w+: .+") as error:
    bundle.load(directory)
  assert "\n" not in str(error.value)
