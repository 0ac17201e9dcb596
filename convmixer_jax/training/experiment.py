"""All parts of a run, built from its config and checked."""

from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import config_dict

from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import sharding
from convmixer_jax.training import build


class Experiment:
  """All parts of a run, built from its config and checked before training starts.

  Args:
    config: as returned by `build.resolve`.
    mesh: devices to shard over; all devices by default.

  Attributes:
    batches, shard_batch: of the training split.
    steps_per_epoch, last_step: number of steps of an epoch and of the whole run.
    optimizer, train_step, fresh_state: see `build.make_step`.
    evaluators: by the name of their metrics. "eval" always exists. "test" runs at the end of the
      run. "train_eval" evaluates the training split without augmentation.

  Raises:
    UserError: if the data are missing, or do not match the config or the devices.
  """

  def __init__(self, config: config_dict.ConfigDict, mesh: Mesh | None = None):
    self.config = config
    self.mesh = mesh = mesh or sharding.make_mesh(fsdp=config.parallel.fsdp)
    self.model = model = build.make_model(config, mesh)
    splits = {"eval": config.data.eval_split, "test": config.data.test_split}
    self.evaluators = {
      name: build.make_evaluator(config, mesh, split, model)
      for name, split in splits.items()
      if split is not None
    }
    self.batches, self.shard_batch = build.open_split(
      config, mesh, config.data.train_split, train=True
    )
    if config.run.eval_train:
      self.evaluators["train_eval"] = build.make_train_evaluator(
        config, model, self.batches, self.shard_batch
      )
    self._check_classes()
    self.steps_per_epoch = len(self.batches)
    run, steps = config.run, config.run.epochs * self.steps_per_epoch
    self.last_step = steps if run.max_steps is None else min(steps, run.max_steps)
    self.optimizer, self.train_step, self.fresh_state = build.make_step(
      config, mesh, model, self.steps_per_epoch, self.batches.source.channels
    )

  def _check_classes(self) -> None:
    data = self.config.data
    splits = (self.batches, self.evaluators["eval"].batches)
    train, evaluated = (list(batches.source.class_names) for batches in splits)
    if train != evaluated:
      only = [sorted(set(a) - set(b)) for a, b in ((train, evaluated), (evaluated, train))]
      raise UserError(
        f"the classes of config.data.train_split and config.data.eval_split differ: {only[0]} are "
        f"only in {data.train_split}, {only[1]} only in {data.eval_split}. Both need the same "
        "classes; in a folder, add an empty directory for a missing one"
      )

  def evaluate(
    self, state: TrainState, after_batch: Callable[[], object]
  ) -> dict[str, dict[str, float]]:
    """The metrics of each periodic evaluation: "eval", and "train_eval" if configured.

    "eval_ema" has the metrics of the averaged weights, if there are any. `after_batch` is as in
    `Evaluator`.
    """
    results = {"eval": self.evaluators["eval"](state.variables(), after_batch)}
    if state.ema is not None:
      results["eval_ema"] = self.evaluators["eval"](state.ema, after_batch)
    if "train_eval" in self.evaluators:
      results["train_eval"] = self.evaluators["train_eval"](state.variables(), after_batch)
    return results
