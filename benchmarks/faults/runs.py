"""Runs the command in its own process, and compares how two runs ended."""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint.manager import resume
from convmixer_jax.training.experiment import Experiment

SAVE_EVERY, STEPS = 4, 44
SMALL = (
  "--config.model.dim=16",
  "--config.model.depth=2",
  "--config.run.epochs=2",
  "--config.run.eval_every_epochs=1",
  "--config.run.log_every_steps=4",
  f"--config.run.checkpoint_every_steps={SAVE_EVERY}",
)
LIMIT = 600  # seconds after which a run counts as hung


@dataclasses.dataclass
class Outcome:
  """The outcome of the runs with one kind of fault.

  Attributes:
    fault: kind of fault.
    tried: number of faults.
    survived: faults after which the run ended as promised.
    lost: faults that lost data: a run ended differently in any bit, or a good checkpoint was
      missing.
    seen: the last line that the user saw, from one of the runs.
    note: other counts.
  """

  fault: str
  tried: int = 0
  survived: int = 0
  lost: int = 0
  seen: str = ""
  note: str = ""

  def count(self, *, survived: bool, kept: bool = True) -> None:
    """Adds one fault."""
    self.tried += 1
    self.survived += survived
    self.lost += not kept


class Run:
  """A process that runs the command, with its output in a file next to the workdir."""

  def __init__(
    self,
    workdir: pathlib.Path,
    arguments: Sequence[str] = SMALL,
    *,
    command: Sequence[str] = ("-m", "convmixer_jax.main"),
    environment: dict[str, str] | None = None,
    log: pathlib.Path | None = None,
  ):
    self.workdir, self.log = workdir, log or workdir.with_suffix(".log")
    self._before = self.log.stat().st_size if self.log.exists() else 0
    cache = {"JAX_COMPILATION_CACHE_DIR": str(self.log.parent / "compiled")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with self.log.open("a") as log:
      self.process = subprocess.Popen(
        [sys.executable, *command, f"--workdir={workdir}", *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **cache, **(environment or {})},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def wait(self) -> int:
    """The exit code; a run that hangs is killed and gives 999."""
    try:
      return self.process.wait(LIMIT)
    except subprocess.TimeoutExpired:
      self.signal_all(signal.SIGKILL)
      self.process.wait()
      return 999

  def signal_all(self, signum: int) -> None:
    """Sends a signal to the process and its children."""
    os.killpg(self.process.pid, signum)

  def output(self) -> str:
    """What this process has printed so far, without earlier ones in the same workdir."""
    return self.log.read_bytes()[self._before :].decode()

  def last_line(self) -> str:
    """The last line that the user sees."""
    return ([line for line in self.output().splitlines() if line.strip()] or [""])[-1]

  def line_with(self, text: str) -> str:
    """The last line that contains the text, without the log prefix, or ""."""
    found = [line for line in self.output().splitlines() if text in line]
    return re.sub(r"^[IWEF]\d{4} [^\]]*\] ", "", found[-1]) if found else ""

  def wait_for_step(self, step: int) -> None:
    """Waits until a checkpoint of this step or a later one is complete, or the run ends."""
    while self.process.poll() is None and newest(self.workdir) < step:
      time.sleep(0.005)

  def wait_for_line(self, step: int) -> None:
    """Waits until the metrics have a line of this step or a later one, or the run ends."""
    while self.process.poll() is None and last_step(self.workdir) < step:
      time.sleep(0.005)


@dataclasses.dataclass
class Bench:
  """The directory of the runs, the random generator, and the undisturbed run's workdir."""

  root: pathlib.Path
  random: random.Random
  whole: pathlib.Path

  def new(self, name: str) -> pathlib.Path:
    """A workdir that does not exist yet."""
    return self.root / f"{name}_{len(list(self.root.iterdir()))}"

  def ends_alike(self, workdir: pathlib.Path, log: pathlib.Path | None = None) -> bool:
    """Runs the command again, and compares its end bit for bit with the undisturbed run's."""
    return Run(workdir, log=log).wait() == 0 and same_end(self.whole, workdir)


def finished(workdir: pathlib.Path, arguments: Sequence[str] = SMALL, **settings) -> pathlib.Path:
  """Runs the command to its end and returns the workdir; exits if the run fails."""
  run = Run(workdir, arguments, **settings)
  if run.wait():
    sys.exit(f"the undisturbed run failed: {run.output()}")
  return workdir


def checkpoints(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The complete checkpoints, the latest first."""
  found = [path for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]
  return sorted(found, key=lambda path: -int(path.name))


def newest(workdir: pathlib.Path) -> int:
  """Step of the latest complete checkpoint, or 0."""
  return max((int(path.name) for path in checkpoints(workdir)), default=0)


def saves_under_way(workdir: pathlib.Path) -> list[str]:
  """Names of Orbax's directories of incomplete saves."""
  return [path.name for path in workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")]


def lines(workdir: pathlib.Path) -> list[dict]:
  """The lines of `metrics.jsonl`, without one that is still being written."""
  path = workdir / "metrics.jsonl"
  text = path.read_text() if path.exists() else ""
  return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(workdir: pathlib.Path) -> int:
  """Step of the last line of the metrics, or 0."""
  return max((line["step"] for line in lines(workdir)), default=0)


def final_state(workdir: pathlib.Path) -> list[np.ndarray]:
  """All arrays in the latest checkpoint."""
  experiment = Experiment(config_lib.read_json(workdir / "config.json"))
  state, _ = resume(workdir, experiment.fresh_state())
  return jax.device_get(jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))))


def same_end(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether two runs have bit-for-bit the same last state, and the same evaluations."""
  if newest(a) != newest(b) or not newest(a):
    return False
  arrays = zip(final_state(a), final_state(b), strict=True)
  evaluations = [[x for x in lines(workdir) if x["split"] == "eval"] for workdir in (a, b)]
  return evaluations[0] == evaluations[1] and all(np.array_equal(x, y) for x, y in arrays)
