import jax
import numpy as np
import pytest

from convmixer_jax import ConvMixer
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.data import Batches, Preprocess
from convmixer_jax.evaluate import evaluate, make_eval_step
from convmixer_jax.source import open_source

MODEL = ConvMixer(8, 1, 3, 2, 10)
MEAN, STD = (0.3,), (0.4,)


@pytest.fixture(scope="module")
def variables():
  return MODEL.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))


@pytest.mark.parametrize("batch_size", [8, 104, 360, 368])
def test_every_batch_size_gives_the_metrics_of_the_whole_split(variables, batch_size):
  source, mesh = open_source("digits", "test"), mesh_lib.make_mesh()
  logits = np.asarray(MODEL.apply(variables, (source.images / 255 - MEAN) / STD), np.float64)
  right = logits[np.arange(360), source.labels]
  losses = np.log(np.exp(logits).sum(1)) - right
  found = evaluate(
    make_eval_step(MODEL, mesh, MEAN, STD),
    variables,
    Batches(source, Preprocess(8), batch_size, train=False),
    mesh_lib.Feed(mesh),
  )
  assert found["num_examples"] == 360
  np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
  assert found["accuracy"] == (logits.argmax(1) == source.labels).mean()
  assert found["top5_accuracy"] == ((logits > right[:, None]).sum(1) < 5).mean()


def test_a_lost_example_is_noticed(variables, monkeypatch):
  source, mesh = open_source("digits", "test"), mesh_lib.make_mesh()
  monkeypatch.setattr(Batches, "__len__", lambda self: 3)
  with pytest.raises(AssertionError):
    evaluate(
      make_eval_step(MODEL, mesh, MEAN, STD),
      variables,
      Batches(source, Preprocess(8), 104, train=False),
      mesh_lib.Feed(mesh),
    )
