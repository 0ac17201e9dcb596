import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.parallel import sharding
from convmixer_jax.training.build import make_evaluator
from convmixer_jax.training.experiment import Experiment


@pytest.fixture
def config(configs):
  config = config_lib.read(configs / "digits.py")
  config.model.update(dim=8, depth=1, kernel_size=3, patch_size=2)
  return config


def test_evaluators_have_the_names_of_their_metrics(config):
  assert list(Experiment(config).evaluators) == ["eval"]
  config.data.test_split, config.run.eval_train = "test", True
  experiment = Experiment(config)
  assert list(experiment.evaluators) == ["eval", "test", "train_eval"]
  assert all(x.model is experiment.model for x in experiment.evaluators.values())


@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_the_training_split_is_evaluated_from_the_copy_that_is_trained_on(config, cache):
  config.data.update(cache=cache, eval_batch_size=360)
  config.run.eval_train = True
  experiment = Experiment(config)
  evaluator = experiment.evaluators["train_eval"]
  assert evaluator.batches.source is experiment.batches.source
  assert evaluator._shard_batch is experiment.shard_batch
  variables = experiment.fresh_state().variables()
  alone = make_evaluator(config, sharding.make_mesh(), "train")
  assert evaluator(variables) == alone(variables)
  assert evaluator(variables)["num_examples"] == 1437
