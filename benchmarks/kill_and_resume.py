"""Kills a run at random moments, resumes it, and compares its end with an undisturbed run's.

Command, from the repository's root:
  python benchmarks/kill_and_resume.py [--kills=3] [--seed=0] [-- flags of convmixer_jax.main]

Without flags of main the run is the one of `configs/digits.py`. Both runs save every
20 steps. The moments of the SIGKILLs are uniform over the whole run, to the fraction of
a step, so that some of them hit a save.
Prints one JSON line; exits with 1 if a parameter, statistic or moment differs in one bit.
"""

import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from absl import logging as absl_logging
import jax
import numpy as np

from convmixer_jax import config as config_lib
from convmixer_jax.checkpoint import resume
from convmixer_jax.train import Experiment

SAVE_EVERY = 20
COMMAND = (sys.executable, "-m", "convmixer_jax.main")


def start(workdir: pathlib.Path, arguments: list[str]) -> subprocess.Popen:
  """The run as a process of its own, its output in a file beside the workdir."""
  command = [
    *COMMAND,
    *arguments,
    f"--workdir={workdir}",
    f"--config.run.checkpoint_every_steps={SAVE_EVERY}",
  ]
  log = workdir.with_suffix(".log").open("a")
  return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def newest(workdir: pathlib.Path) -> int:
  """Step of the newest complete checkpoint, or 0."""
  return max((int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal()), default=0)


def wait_for_step(run: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
  """Until a checkpoint of this step or a later one is complete, or the run ends."""
  while run.poll() is None and newest(workdir) < step:
    time.sleep(0.01)


def final_state(workdir: pathlib.Path) -> list[np.ndarray]:
  """Everything in the newest checkpoint, the key excepted."""
  config = config_lib.read_json(workdir / "config.json")
  state, _ = resume(workdir, Experiment(config).fresh_state())
  return jax.device_get(jax.tree.leaves(state.replace(key=None)))


def main(argv: list[str]) -> None:
  """One undisturbed run, one that is killed."""
  absl_logging.set_verbosity(absl_logging.ERROR)
  arguments, randomness = argv[1:], random.Random(flags.FLAGS.seed)
  with tempfile.TemporaryDirectory() as directory:
    whole, killed = pathlib.Path(directory, "whole"), pathlib.Path(directory, "killed")
    run = start(whole, arguments)
    wait_for_step(run, whole, SAVE_EVERY)
    begin = time.perf_counter()
    if run.wait():
      sys.exit(whole.with_suffix(".log").read_text())
    total = newest(whole)
    step_seconds = (time.perf_counter() - begin) / (total - SAVE_EVERY)

    moments = sorted(randomness.uniform(0, total) for _ in range(flags.FLAGS.kills))
    resumed_from = []
    for moment in moments:
      run = start(killed, arguments)
      saves, rest = divmod(moment, SAVE_EVERY)
      wait_for_step(run, killed, int(saves) * SAVE_EVERY)
      time.sleep(rest * step_seconds)
      run.kill()
      if run.wait() != -signal.SIGKILL:
        sys.exit(f"the run ended by itself: {killed.with_suffix('.log').read_text()}")
      resumed_from.append(newest(killed))
    if start(killed, arguments).wait():
      sys.exit(killed.with_suffix(".log").read_text())

    pairs = list(zip(final_state(whole), final_state(killed), strict=True))
    differing = sum(not np.array_equal(a, b) for a, b in pairs)
    result = {
      "kills": len(moments),
      "of_steps": total,
      "killed_about_step": [round(moment, 1) for moment in moments],
      "resumed_from_steps": resumed_from,
      "arrays": len(pairs),
      "differing_arrays": differing,
    }
    print(json.dumps(result))
    sys.exit(differing > 0)


if __name__ == "__main__":
  flags.DEFINE_integer("kills", 3, "How many times the run is killed.")
  flags.DEFINE_integer("seed", 0, "Of the moments.")
  app.run(main)
