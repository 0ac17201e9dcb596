"""Seconds from the start of a run to its first step, with and without JAX's cache of programs.

Command, from the repository's root:
  python -m benchmarks.first_step [--config=configs/cifar10_cpu.py] [--rounds=5]

The command as users type it, in a process of its own: without the cache, then with an empty one (a
first start), then with that one again (a second start). Wall time tells what a user waits on this
machine, the processor's time what is done in it, which other programs disturb less.
Prints a table of medians, with the smallest and the largest value.
"""

import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags


def start(config: str, cache: pathlib.Path, environment: dict[str, str]) -> list[float]:
  """Wall seconds and processor's seconds until the first line of metrics; those of the compiler."""
  with tempfile.TemporaryDirectory() as workdir:
    command = [sys.executable, "-m", "convmixer_jax.main", f"--config={config}"]
    settings = [f"--workdir={workdir}/run", "--config.run.log_every_steps=1"]
    begin = time.monotonic()
    process = subprocess.Popen(
      [*command, *settings],
      env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    assert process.stdout
    compiler = 0.0
    for line in process.stdout:
      if found := re.search(r"compiled the training step in ([\d.]+) s", line):
        compiler = float(found[1])
      if "step 1/" in line:
        break
    else:
      raise RuntimeError(f"no first step, exit code {process.wait()}")
    wall = time.monotonic() - begin
    process.send_signal(signal.SIGKILL)
    used = os.wait4(process.pid, 0)[2]
    return [wall, used.ru_utime + used.ru_stime, compiler]


def main(argv: list[str]) -> None:
  """Measures all three in turn."""
  del argv
  options = flags.FLAGS
  found: dict[str, list[list[float]]] = {"without": [], "first start": [], "second start": []}
  for _ in range(options.rounds):
    with tempfile.TemporaryDirectory() as directory:
      cache = pathlib.Path(directory)
      off = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
      found["without"].append(start(options.config, cache, off))
      found["first start"].append(start(options.config, cache, {}))
      found["second start"].append(start(options.config, cache, {}))
  print("| cache | seconds to the first step | of the processor | in the compiler's call |")
  print("|---|---|---|---|")
  for name, rows in found.items():
    cells = [
      f"{statistics.median(column):.1f} ({min(column):.1f} to {max(column):.1f})"
      for column in zip(*rows, strict=True)
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  flags.DEFINE_string("config", "configs/cifar10_cpu.py", "Of the run.")
  flags.DEFINE_integer("rounds", 5, "Of all three.")
  app.run(main)
