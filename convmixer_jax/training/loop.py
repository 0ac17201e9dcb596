"""The training loop, and all that it needs."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import logging
import math
import pathlib
import shlex
import zlib

import jax
from ml_collections import config_dict

from convmixer_jax import config as config_lib
from convmixer_jax import storage
from convmixer_jax.checkpoint import manager
from convmixer_jax.checkpoint.state import TrainState
from convmixer_jax.data import class_names
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import lock, processes
from convmixer_jax.parallel.signals import Interrupt
from convmixer_jax.parallel.watchdog import Watchdog
from convmixer_jax.results.writer import Writer
from convmixer_jax.training import build, compiling, init_from, metrics
from convmixer_jax.training.experiment import Experiment
from convmixer_jax.training.meter import Meter

_log = logging.getLogger(__name__)


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
  config = build.resolve(config)
  run = config.run
  stall_seconds = run.stall_seconds if jax.process_count() > 1 else None
  with contextlib.ExitStack() as stack:
    stack.enter_context(storage.reported(workdir))
    watchdog = stack.enter_context(Watchdog(stall_seconds))
    _check_is_one_run(config)
    storage.check_writable(workdir)
    check_ours = stack.enter_context(_one_writer(workdir))
    config_lib.check_resumable(config, workdir / "config.json")
    weights = None
    if config.init_from is not None and not manager.has_begun(workdir):
      weights = init_from.read(config)
    experiment = Experiment(config)
    state, first = manager.resume(workdir, experiment.fresh_state())
    if weights is not None:
      state = init_from.begin(state, weights)
    _write_config(config, workdir / "config.json")
    if jax.process_index() == 0:
      class_names.write(workdir, experiment.batches.source.class_names)
    interrupt = stack.enter_context(Interrupt())
    checkpoints = stack.enter_context(manager.Checkpoints(workdir, run.keep_checkpoints))
    return _loop(experiment, workdir, state, first, checkpoints, interrupt, watchdog, check_ours)


def _loop(
  experiment: Experiment,
  workdir: pathlib.Path,
  state: TrainState,
  first: int,
  checkpoints: manager.Checkpoints,
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
    meter = Meter(run.log_every_steps, last, functools.partial(write, "train"))
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
    if message := processes.text_of_first(message):
      raise UserError(message)
    yield check


def _check_is_one_run(config: config_dict.ConfigDict) -> None:
  """Processes that compute different things would wait for each other without end."""
  digest = zlib.crc32(config_lib.to_json(config).encode()) >> 1  # 31 bits
  if not processes.all_agree([digest] == processes.of_first([digest])):
    raise UserError("the settings of the run's processes differ: start all with the same ones")


def _write_config(config: config_dict.ConfigDict, path: pathlib.Path) -> None:
  if jax.process_index() == 0:
    config_lib.write_json(config, path)
  processes.wait_for_all("config.json is written")
  if not processes.all_agree(path.exists()):
    raise UserError(
      f"{path} of process 0 is not there for every process: --workdir has to be on storage that all"
      " of them share"
    )
