"""The train step and the loop around it."""

from collections.abc import Mapping
import functools
import logging
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import config_dict
import optax

from convmixer_jax import augment, inputs, metrics
from convmixer_jax import config as config_lib
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.checkpoint import Checkpoints, resume
from convmixer_jax.errors import UserError
from convmixer_jax.evaluate import Evaluator
from convmixer_jax.interrupt import Interrupt
from convmixer_jax.model import ConvMixer
from convmixer_jax.optim import make_optimizer, make_schedule
from convmixer_jax.state import TrainState, create_state
from convmixer_jax.writer import Writer

_log = logging.getLogger(__name__)


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  *,
  model: ConvMixer,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  augmentation: Mapping[str, Any],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on one global batch.

  Args:
    state: before the update.
    batch: "image" uint8 [b, h, w, c], "label" int32 [b], "mask" float32 [b] of ones.
    model, optimizer, schedule: whose state, parameters and updates these are.
    augmentation: keyword arguments of `augment.augment`.

  Returns:
    The state after it, and `metrics.sums` with "learning_rate" and "grad_norm",
    the gradient's norm before clipping.
  """
  image_bhwc = augment.augment(
    jax.random.fold_in(state.key, state.step), batch["image"], **augmentation
  )

  def loss_fn(params):
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits_bk, updated = model.apply(variables, image_bhwc, train=True, mutable=["batch_stats"])
    loss = metrics.cross_entropy(logits_bk, batch["label"]).mean()
    return loss, (logits_bk, updated["batch_stats"])

  gradients, (logits_bk, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  values = metrics.sums(logits_bk, batch["label"], batch["mask"]) | {
    "learning_rate": schedule(state.step),
    "grad_norm": optax.tree.norm(gradients),
  }
  params = optax.apply_updates(state.params, updates)
  return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), values


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
    self.mesh = mesh or mesh_lib.make_mesh()
    self.evaluator = Evaluator(config, self.mesh)
    self.model = self.evaluator.model
    self.batches, self.feed = inputs.open_split(config, self.mesh, train=True)
    classes = [list(b.source.class_names) for b in (self.batches, self.evaluator.batches)]
    if classes[0] != classes[1]:
      raise UserError(
        f"the classes of config.data.train_split, {classes[0]}, are not those of "
        f"config.data.eval_split, {classes[1]}"
      )
    self.steps_per_epoch = len(self.batches)
    self.schedule = make_schedule(
      config.schedule.name,
      peak=config.optimizer.learning_rate,
      epochs=config.run.epochs,
      steps_per_epoch=self.steps_per_epoch,
      warmup_epochs=config.schedule.warmup_epochs,
    )
    settings = {name: value for name, value in config.optimizer.items() if name != "learning_rate"}
    self.optimizer = make_optimizer(self.schedule, **settings)
    self.train_step = jax.jit(
      functools.partial(
        train_step,
        model=self.model,
        optimizer=self.optimizer,
        schedule=self.schedule,
        augmentation=dict(config.augment),
      ),
      donate_argnums=0,
      out_shardings=mesh_lib.replicated(self.mesh),
    )

  def fresh_state(self) -> TrainState:
    """The state before the first step."""
    size = self.config.data.image_size
    return create_state(
      self.model,
      self.optimizer,
      self.mesh,
      seed=self.config.seed,
      image_shape=(size, size, self.batches.source.channels),
    )

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Metrics of the whole evaluation split."""
    return self.evaluator({"params": state.params, "batch_stats": state.batch_stats})


def train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> int | None:
  """Trains to the end of the run, from the newest checkpoint in `workdir` if there is one.

  Args:
    config: see `config.base`.
    workdir: gets `config.json`, `metrics.jsonl`, event files and `checkpoints/`.

  Returns:
    None at the end of the run, or the signal that stopped it after a save.

  Raises:
    UserError: if a setting is wrong, the workdir is another run's, no checkpoint
      can be read, or the loss is not finite.
  """
  config_lib.validate(config)
  config_lib.check_resumable(config, workdir / "config.json")
  experiment = Experiment(config)
  run, steps_per_epoch = config.run, experiment.steps_per_epoch
  last = run.epochs * steps_per_epoch
  last = last if run.max_steps is None else min(last, run.max_steps)
  state, first = resume(workdir, experiment.fresh_state())
  if jax.process_index() == 0:
    config_lib.write_json(config, workdir / "config.json")
  _log.info("at step %d of %d, %d to the epoch", first, last, steps_per_epoch)
  with Interrupt() as interrupt, Checkpoints(workdir, run.keep_checkpoints) as checkpoints:
    batch_size = config.data.batch_size
    with Writer(workdir, first_step=first, total_steps=last, batch_size=batch_size) as writer:

      def write(split: str, step: int, values: dict[str, float]) -> None:
        writer.write(step, step / steps_per_epoch, split, values)

      def is_evaluated(step: int) -> bool:
        return step == last or step % (run.eval_every_epochs * steps_per_epoch) == 0

      if 0 < first <= last and is_evaluated(first) and not writer.is_evaluated(first):
        write("eval", first, experiment.evaluate(state))  # a signal came before it
      meter = metrics.Meter(run.log_every_steps, last, functools.partial(write, "train"))
      batches = experiment.batches.iterate(first, last, run.workers)
      try:
        for step, batch in enumerate(batches, start=first + 1):
          state, values = experiment.train_step(state, experiment.feed(batch))
          meter.add(step, values)
          writer.advance()
          stops = interrupt.signum is not None
          if stops or is_evaluated(step) or step % run.checkpoint_every_steps == 0:
            meter.settle()  # only a good state is saved
            scores = {}
            if is_evaluated(step) and not stops:
              scores = experiment.evaluate(state)
              write("eval", step, scores)
            checkpoints.save(step, state, scores.get("accuracy"))
            meter.restart_clock()
          if stops:
            break
      except metrics.NonFiniteError as error:
        raise UserError(
          f"{error}. The last good checkpoint: {checkpoints.latest() or 'none, no save was due'}. "
          "Try a lower config.optimizer.learning_rate, config.optimizer.clip_norm=1.0, or "
          'config.model.dtype="float32", with a new --workdir'
        ) from None
    return interrupt.signum
