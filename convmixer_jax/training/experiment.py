"""Everything that a config stands for, built and checked."""

from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import sharding
from convmixer_jax.training import build
from convmixer_jax.training.build import make_step
from convmixer_jax.training.evaluate import Evaluator


class Experiment:
  """Everything that a config stands for, built and checked before any work begins.

  Args:
    config: see `config.base`.
    mesh: where; all devices if not given.

  Raises:
    UserError: if a setting is wrong, or does not fit the data or the devices.
  """

  def __init__(self, config: config_dict.ConfigDict, mesh: Mesh | None = None):
    config_lib.validate(config)
    self.config = config
    self.mesh = mesh or sharding.make_mesh(fsdp=config.parallel.fsdp)
    self.evaluator = Evaluator(config, self.mesh, config.data.eval_split)
    if config.data.test_split is not None:
      self.tester = Evaluator(config, self.mesh, config.data.test_split)
    if config.run.eval_train:
      self.train_evaluator = Evaluator(config, self.mesh, config.data.train_split)
    self.model = self.evaluator.model
    self.batches, self.feed = build.open_split(
      config, self.mesh, config.data.train_split, train=True
    )
    classes = [list(b.source.class_names) for b in (self.batches, self.evaluator.batches)]
    if classes[0] != classes[1]:
      only = [sorted(set(a) - set(b)) for a, b in (classes, classes[::-1])]
      raise UserError(
        f"the classes of config.data.train_split and config.data.eval_split differ: {only[0]} are "
        f"only in {config.data.train_split}, {only[1]} only in {config.data.eval_split}. Both need "
        "the same; in a folder, an empty directory will do"
      )
    self.steps_per_epoch = len(self.batches)
    self.optimizer, self.train_step, self.fresh_state = make_step(
      config, self.mesh, self.model, self.steps_per_epoch, self.batches.source.channels
    )

  def evaluate(self, state: TrainState) -> dict[str, dict[str, float]]:
    """Metrics of the whole evaluation split: "eval", and "eval_ema" of the averaged weights.

    With `config.run.eval_train` also "train_eval": of the training split, in test mode.
    """
    results = {"eval": self.evaluator(state.variables())}
    if state.ema is not None:
      results["eval_ema"] = self.evaluator(state.ema)
    if self.config.run.eval_train:
      results["train_eval"] = self.train_evaluator(state.variables())
    return results
