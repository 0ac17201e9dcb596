import shutil

import jax
import numpy as np
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.data.batches import Batches
from convmixer_jax.data.datasets import open_source
from convmixer_jax.parallel import sharding
from convmixer_jax.training.build import make_evaluator


@pytest.fixture
def config(configs):
  config = config_lib.read(configs / "digits.py")
  config.model.update(dim=8, depth=1, kernel_size=3, patch_size=2)
  return config


@pytest.mark.parametrize("batch_size", [8, 104, 360, 368])
def test_every_batch_size_gives_the_metrics_of_the_whole_split(config, batch_size):
  config.data.eval_batch_size = batch_size
  evaluator = make_evaluator(config, sharding.make_mesh(), "test")
  source = open_source("digits", "test")
  image = np.float32((source.images / 255 - config.augment.mean) / config.augment.std)
  variables = evaluator.model.init(jax.random.key(0), image)
  model = evaluator.model.clone(mesh=None)
  logits = np.asarray(model.apply(variables, image), np.float64)
  right = logits[np.arange(360), source.labels]
  losses = np.log(np.exp(logits).sum(1)) - right
  found = evaluator(variables)
  assert found["num_examples"] == 360
  np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
  assert found["accuracy"] == (logits.argmax(1) == source.labels).mean()
  assert found["top5_accuracy"] == ((logits > right[:, None]).sum(1) < 5).mean()


def test_a_corrupt_example_is_left_out_and_not_counted(config, image_folder, tmp_path):
  root = shutil.copytree(image_folder, tmp_path / "photos")
  config.data.update(dataset="folder", data_dir=str(root), image_size=40, eval_batch_size=8)
  config.augment.update(mean=(0.5,) * 3, std=(0.2,) * 3)
  config.model.num_classes = 2
  mesh = sharding.make_mesh()
  evaluator = make_evaluator(config, mesh, "train")
  variables = evaluator.model.init(jax.random.key(0), np.zeros((1, 40, 40, 3), np.float32))
  everything = evaluator.predict(variables)
  (root / "train" / "bee" / "1.jpg").write_bytes(b"no JPEG")
  for cache in ("none", "host", "device"):
    config.data.cache = cache
    evaluator = make_evaluator(config, mesh, "train")
    rest = evaluator.predict(variables)
    np.testing.assert_array_equal(rest.label_n, np.delete(everything.label_n, 6))
    probability_n = np.delete(everything.true_probability_n, 6)
    np.testing.assert_allclose(rest.true_probability_n, probability_n, rtol=1e-5)
    found = evaluator(variables)
    assert found["num_examples"] == 9
    np.testing.assert_allclose(found["loss"], -np.log(probability_n).mean(), rtol=1e-4)


def test_no_more_than_two_batches_are_on_the_device(config, monkeypatch):
  """The results of one batch are fetched while the next one is computed."""
  config.data.eval_batch_size = 80
  evaluator = make_evaluator(config, sharding.make_mesh(), "test")
  variables = evaluator.model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
  step, fetch, seen = evaluator._step, jax.device_get, []

  def stepped(*arguments):
    seen.append("step")
    return step(*arguments)

  def fetched(values):
    seen.append("fetch")
    return fetch(values)

  monkeypatch.setattr(evaluator, "_step", stepped)
  monkeypatch.setattr(jax, "device_get", fetched)
  assert evaluator(variables)["num_examples"] == 360
  assert seen == ["step", *["step", "fetch"] * 4, "fetch"]


def test_a_lost_example_is_noticed(config, monkeypatch):
  config.data.eval_batch_size = 104
  evaluator = make_evaluator(config, sharding.make_mesh(), "test")
  variables = evaluator.model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
  monkeypatch.setattr(Batches, "__len__", lambda self: 3)
  with pytest.raises(AssertionError):
    evaluator(variables)
