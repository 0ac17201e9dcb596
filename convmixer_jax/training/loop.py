"""The training loop."""

import contextlib
import functools
import logging
import math
import pathlib
import shlex

import jax
from ml_collections import config_dict

from convmixer_jax import storage
from convmixer_jax.checkpoint import manager
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import sharding
from convmixer_jax.parallel.signals import Interrupt, Interrupted
from convmixer_jax.parallel.watchdog import Watchdog
from convmixer_jax.results import starts
from convmixer_jax.results.writer import OnMetrics, Writer
from convmixer_jax.training import build, choice, compiling, init_from, metrics
from convmixer_jax.training import workdir as workdirs
from convmixer_jax.training.evaluate import restore_variables
from convmixer_jax.training.experiment import Experiment
from convmixer_jax.training.meter import Meter
from convmixer_jax.training.profile import Profile

_log = logging.getLogger(__name__)


def train(
  config: config_dict.ConfigDict, workdir: pathlib.Path, *, on_metrics: OnMetrics | None = None
) -> int | None:
  """Trains to the end of the run, resuming from the latest checkpoint in `workdir` if any.

  Args:
    config: see `config.base`.
    workdir: where to write `config.json`, `class_names.json`, `metrics.jsonl`, `starts.jsonl`,
      event files and `checkpoints/`.
    on_metrics: called on process 0 with (step, split, values) for each line of `metrics.jsonl`,
      for other loggers.

  Returns:
    None at the end of the run, or the number of the signal that stopped it after a save.

  Raises:
    UserError: if a setting is invalid, if the workdir is in use, not writable or
      belongs to another run, if no checkpoint can be read, or if the loss is not finite.
  """
  config = build.resolve(config)
  run = config.run
  with contextlib.ExitStack() as stack:
    stack.enter_context(storage.reported(workdir))
    stall_seconds = run.stall_seconds if jax.process_count() > 1 else None
    watchdog = stack.enter_context(Watchdog(stall_seconds))
    profile = stack.enter_context(Profile(run.profile_steps, workdir))
    check_ours = stack.enter_context(workdirs.claimed(workdir, config))
    experiment, state = _begin(config, workdir)
    workdirs.describe(workdir, config, experiment.batches.source.class_names)
    interrupt = stack.enter_context(Interrupt())
    checkpoints = stack.enter_context(manager.Checkpoints(workdir, run.keep_checkpoints))
    first, last = int(state.step), experiment.last_step
    _log.info("at step %d of %d, %d per epoch", first, last, experiment.steps_per_epoch)
    writer = Writer(
      workdir,
      first_step=first,
      total_steps=last,
      batch_size=config.data.batch_size,
      check=check_ours,
      on_metrics=on_metrics,
    )
    stack.enter_context(writer)
    stack.enter_context(starts.recorded(workdir, first))
    with contextlib.suppress(Interrupted):
      _loop(experiment, state, writer, checkpoints, interrupt, watchdog, profile)
      if interrupt.signum is None:
        _finish(experiment, workdir, first, writer, checkpoints, interrupt)
    return interrupt.signum


def _begin(config: config_dict.ConfigDict, workdir: pathlib.Path) -> tuple[Experiment, TrainState]:
  """The experiment, and its state: from the latest checkpoint, or fresh."""
  weights = None
  if config.init_from is not None and not manager.has_begun(workdir):
    weights = init_from.read(config)
  mesh = sharding.make_mesh(fsdp=config.parallel.fsdp)
  experiment = Experiment(choice.with_depthwise(config, mesh, workdir), mesh)
  state, _ = manager.resume(workdir, experiment.fresh_state())
  return experiment, state if weights is None else init_from.begin(state, weights)


def _loop(
  experiment: Experiment,
  state: TrainState,
  writer: Writer,
  checkpoints: manager.Checkpoints,
  interrupt: Interrupt,
  watchdog: Watchdog,
  profile: Profile,
) -> None:
  """Runs the remaining steps, up to the last one or until a signal."""
  run, steps_per_epoch = experiment.config.run, experiment.steps_per_epoch
  first, last = int(state.step), experiment.last_step
  train_step = compiling.Announced(experiment.train_step, "the training step")

  def write(split: str, step: int, values: dict[str, float]) -> None:
    writer.write(step, step / steps_per_epoch, split, values)

  def is_evaluated(step: int) -> bool:
    return step == last or step % (run.eval_every_epochs * steps_per_epoch) == 0

  def evaluate(step: int) -> float:
    results = experiment.evaluate(state, interrupt.check)
    for split, values in results.items():
      write(split, step, values)
    return results["eval"]["accuracy"]

  if 0 < first <= last and is_evaluated(first) and not writer.has("eval", first):
    evaluate(first)  # a signal stopped the run before this evaluation
  meter = Meter(run.log_every_steps, last, functools.partial(write, "train"))
  batches = experiment.batches.iterate(first, last, run.workers)
  try:
    for step, batch in enumerate(batches, start=first + 1):
      profile.begin(step)
      state, values = train_step(state, experiment.shard_batch(batch))
      meter.add(step, values)
      profile.end(step, values)
      writer.advance()
      stops = interrupt.poll() is not None
      if stops or is_evaluated(step) or step % run.checkpoint_every_steps == 0:
        meter.settle()  # save only states with a finite loss
        metrics.check_finite(step, state.variables())
        accuracy = None
        if is_evaluated(step) and not stops:
          with contextlib.suppress(Interrupted):  # the next start repeats the evaluation
            accuracy = evaluate(step)
        writer.flush()
        checkpoints.save(step, state, accuracy)
        if interrupt.signum is not None:
          return
        meter.restart_clock()
      watchdog.beat()
  except metrics.NonFiniteError as error:
    raise UserError(
      f"{error}. The last good checkpoint: {checkpoints.latest() or 'none, no save was due'}. "
      "Try a lower config.optimizer.learning_rate, config.optimizer.clip_norm=1.0, or "
      'config.model.dtype="float32", with a new --workdir'
    ) from None


def _finish(
  experiment: Experiment,
  workdir: pathlib.Path,
  first: int,
  writer: Writer,
  checkpoints: manager.Checkpoints,
  interrupt: Interrupt,
) -> None:
  """Tests the most accurate checkpoint if a test split is set, and prints what to do next."""
  config, steps_per_epoch = experiment.config, experiment.steps_per_epoch
  last, best = experiment.last_step, checkpoints.best()
  tester = experiment.evaluators.get("test")
  if tester and first <= last and not writer.has("test", last):
    variables, best = restore_variables(config, experiment.mesh, workdir, best)
    values = {**tester(variables, interrupt.check), "checkpoint": best}
    writer.write(last, last / steps_per_epoch, "test", values)
  if first >= last:
    writer.say(_how_to_train_longer(config, workdir, first, steps_per_epoch))
  writer.say(_what_next(workdir, best, writer.accuracy(best)))


def _how_to_train_longer(
  config: config_dict.ConfigDict, workdir: pathlib.Path, done: int, steps_per_epoch: int
) -> str:
  run, settings = config.run, []
  if run.epochs * steps_per_epoch < 2 * done:
    settings.append(f"--config.run.epochs={math.ceil(2 * done / steps_per_epoch)}")
  if run.max_steps is not None and run.max_steps < 2 * done:
    settings.append(f"--config.run.max_steps={2 * done}")
  return (
    f"{workdir} is finished: {done} steps are done. To train longer, repeat the command with "
    f"{' '.join(settings)}"
  )


def _what_next(workdir: pathlib.Path, step: int | None, accuracy: float | None) -> str:
  found = "the latest checkpoint" if accuracy is None else f"best accuracy {accuracy:.4g}"
  return (
    f"{found}, at step {step}: {workdir / 'checkpoints' / str(step)}. To evaluate it: python -m "
    f"convmixer_jax.main --mode=eval --workdir={shlex.quote(str(workdir))} --step={step}"
  )
