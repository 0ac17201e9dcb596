"""The training loop, and all that it needs."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import logging
import math
import pathlib
import shlex
from typing import Any
import zlib

import jax
from jax.sharding import Mesh
from ml_collections import config_dict
import optax

from convmixer_jax import (
  checkpoint,
  class_names,
  compiling,
  disk,
  distributed,
  initial,
  inputs,
  lock,
  metrics,
)
from convmixer_jax import config as config_lib
from convmixer_jax import mesh as mesh_lib
from convmixer_jax.errors import UserError
from convmixer_jax.evaluate import Evaluator
from convmixer_jax.interrupt import Interrupt
from convmixer_jax.model import ConvMixer
from convmixer_jax.optim import make_optimizer, make_schedule
from convmixer_jax.state import TrainState, create_state
from convmixer_jax.step import train_step
from convmixer_jax.watchdog import Watchdog
from convmixer_jax.writer import Writer

_log = logging.getLogger(__name__)


def make_step(
  config: config_dict.ConfigDict,
  mesh: Mesh,
  model: ConvMixer,
  steps_per_epoch: int,
  channels: int,
) -> tuple[optax.GradientTransformation, Any, Callable[[], TrainState]]:
  """A config's optimiser, its jitted `step.train_step`, and what makes the state before the first.

  Args:
    config: see `config.base`.
    mesh: where.
    model: whose step it is.
    steps_per_epoch: of the schedule.
    channels: of the images.
  """
  settings = config.optimizer.to_dict()
  schedule = make_schedule(
    **config.schedule,
    peak=settings.pop("learning_rate"),
    epochs=config.run.epochs,
    steps_per_epoch=steps_per_epoch,
  )
  of_step = {name: settings.pop(name) for name in ("loss", "accumulate_steps", "ema_decay")}
  of_step["freeze_backbone"] = settings["freeze_backbone"]
  optimizer = make_optimizer(schedule, **settings)
  size = config.data.image_size

  def fresh_state() -> TrainState:
    return create_state(
      model,
      optimizer,
      mesh,
      seed=config.seed,
      image_shape=(size, size, channels),
      with_ema=config.optimizer.ema_decay is not None,
    )

  state = jax.eval_shape(fresh_state)
  _log.info(mesh_lib.describe(mesh, state.params))
  step = jax.jit(
    functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      schedule=schedule,
      augmentation=inputs.make_augmentation(config, mesh),
      mesh=mesh if mesh.size > 1 else None,
      **of_step,
    ),
    donate_argnums=0,
    out_shardings=(mesh_lib.cut(mesh, state), mesh_lib.replicated(mesh)),
  )
  return optimizer, step, fresh_state


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
    self.mesh = mesh or mesh_lib.make_mesh(fsdp=config.parallel.fsdp)
    self.evaluator = Evaluator(config, self.mesh, config.data.eval_split)
    if config.data.test_split is not None:
      self.tester = Evaluator(config, self.mesh, config.data.test_split)
    if config.run.eval_train:
      self.train_evaluator = Evaluator(config, self.mesh, config.data.train_split)
    self.model = self.evaluator.model
    self.batches, self.feed = inputs.open_split(
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


def train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> int | None:
  """Trains to the end of the run, from the newest checkpoint in `workdir` if there is one.

  Args:
    config: see `config.base`.
    workdir: gets `config.json`, `class_names.json`, `metrics.jsonl`, event files
      and `checkpoints/`.

  Returns:
    None at the end of the run, or the signal that stopped it after a save.

  Raises:
    UserError: if a setting is wrong, the workdir is in use, another run's or
      cannot be written to, no checkpoint can be read, or the loss is not finite.
  """
  config_lib.validate(config)
  config = inputs.resolve(config)
  run = config.run
  stall_seconds = run.stall_seconds if jax.process_count() > 1 else None
  with contextlib.ExitStack() as stack:
    stack.enter_context(disk.reported(workdir))
    watchdog = stack.enter_context(Watchdog(stall_seconds))
    _check_is_one_run(config)
    disk.check_writable(workdir)
    check_ours = stack.enter_context(_one_writer(workdir))
    config_lib.check_resumable(config, workdir / "config.json")
    weights = None
    if config.init_from is not None and not checkpoint.has_begun(workdir):
      weights = initial.read(config)
    experiment = Experiment(config)
    state, first = checkpoint.resume(workdir, experiment.fresh_state())
    if weights is not None:
      state = initial.begin(state, weights)
    _write_config(config, workdir / "config.json")
    if jax.process_index() == 0:
      class_names.write(workdir, experiment.batches.source.class_names)
    interrupt = stack.enter_context(Interrupt())
    checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir, run.keep_checkpoints))
    return _loop(experiment, workdir, state, first, checkpoints, interrupt, watchdog, check_ours)


def _loop(
  experiment: Experiment,
  workdir: pathlib.Path,
  state: TrainState,
  first: int,
  checkpoints: checkpoint.Checkpoints,
  interrupt: Interrupt,
  watchdog: Watchdog,
  check_ours: Callable[[], None],
) -> int | None:
  """Takes all steps after `first`; see `train`."""
  config, steps_per_epoch = experiment.config, experiment.steps_per_epoch
  run, last = config.run, config.run.epochs * steps_per_epoch
  last = last if run.max_steps is None else min(last, run.max_steps)
  _log.info("at step %d of %d, %d to the epoch", first, last, steps_per_epoch)
  train_step = compiling.Announced(experiment.train_step, "the training step")
  with Writer(
    workdir,
    first_step=first,
    total_steps=last,
    batch_size=config.data.batch_size,
    check=check_ours,
  ) as writer:

    def write(split: str, step: int, values: dict[str, float]) -> None:
      writer.write(step, step / steps_per_epoch, split, values)

    def is_evaluated(step: int) -> bool:
      return step == last or step % (run.eval_every_epochs * steps_per_epoch) == 0

    def evaluate(step: int) -> float:
      results = experiment.evaluate(state)
      for split, values in results.items():
        write(split, step, values)
      return results["eval"]["accuracy"]

    if 0 < first <= last and is_evaluated(first) and not writer.has("eval", first):
      evaluate(first)  # a signal came before it
    meter = metrics.Meter(run.log_every_steps, last, functools.partial(write, "train"))
    batches = experiment.batches.iterate(first, last, run.workers)
    try:
      for step, batch in enumerate(batches, start=first + 1):
        state, values = train_step(state, experiment.feed(batch))
        meter.add(step, values)
        writer.advance()
        stops = interrupt.poll() is not None
        if stops or is_evaluated(step) or step % run.checkpoint_every_steps == 0:
          meter.settle()  # only a good state is saved
          metrics.check_finite(step, state.variables())
          accuracy = evaluate(step) if is_evaluated(step) and not stops else None
          writer.flush()
          checkpoints.save(step, state, accuracy)
          meter.restart_clock()
        watchdog.beat()
        if stops:
          break
    except metrics.NonFiniteError as error:
      raise UserError(
        f"{error}. The last good checkpoint: {checkpoints.latest() or 'none, no save was due'}. "
        "Try a lower config.optimizer.learning_rate, config.optimizer.clip_norm=1.0, or "
        'config.model.dtype="float32", with a new --workdir'
      ) from None
    if interrupt.signum is None:
      best = checkpoints.best()
      if config.data.test_split and first <= last and not writer.has("test", last):
        values, best = experiment.tester.of_checkpoint(workdir, best)
        write("test", last, {**values, "checkpoint": best})
      if first >= last:
        writer.say(_how_to_train_longer(config, workdir, first, steps_per_epoch))
      writer.say(_what_next(workdir, best, writer.accuracy(best)))
  return interrupt.signum


def _how_to_train_longer(
  config: config_dict.ConfigDict, workdir: pathlib.Path, done: int, steps_per_epoch: int
) -> str:
  run, settings = config.run, []
  if run.epochs * steps_per_epoch < 2 * done:
    settings.append(f"--config.run.epochs={math.ceil(2 * done / steps_per_epoch)}")
  if run.max_steps is not None and run.max_steps < 2 * done:
    settings.append(f"--config.run.max_steps={2 * done}")
  return (
    f"{workdir} is finished: {done} steps are done, and nothing is left to do. To train longer, "
    f"repeat the command with {' '.join(settings)}"
  )


def _what_next(workdir: pathlib.Path, step: int | None, accuracy: float | None) -> str:
  found = "the newest checkpoint" if accuracy is None else f"best accuracy {accuracy:.4g}"
  return (
    f"{found}, at step {step}: {workdir / 'checkpoints' / str(step)}. To evaluate it: python -m "
    f"convmixer_jax.main --mode=eval --workdir={shlex.quote(str(workdir))} --step={step}"
  )


@contextlib.contextmanager
def _one_writer(workdir: pathlib.Path) -> Iterator[Callable[[], None]]:
  """`lock.one_writer` in process 0; the others learn whether it has the workdir."""
  with contextlib.ExitStack() as stack:
    message, check = "", lambda: None
    if jax.process_index() == 0:
      try:
        check = stack.enter_context(lock.one_writer(workdir))
      except UserError as error:
        message = str(error)
    if message := distributed.text_of_first(message):
      raise UserError(message)
    yield check


def _check_is_one_run(config: config_dict.ConfigDict) -> None:
  """Processes that compute different things would wait for each other without end."""
  digest = zlib.crc32(config_lib.to_json(config).encode()) >> 1  # 31 bits
  if not distributed.all_agree([digest] == distributed.of_first([digest])):
    raise UserError("the settings of the run's processes differ: start all with the same ones")


def _write_config(config: config_dict.ConfigDict, path: pathlib.Path) -> None:
  if jax.process_index() == 0:
    config_lib.write_json(config, path)
  distributed.wait_for_all("config.json is written")
  if not distributed.all_agree(path.exists()):
    raise UserError(
      f"{path} of process 0 is not there for every process: --workdir has to be on storage that all"
      " of them share"
    )
