"""Seconds from the start of a run to its first step, with and without JAX's compilation cache.

Run from the repository's root:
  python -m benchmarks.first_step [--config=configs/cifar10_cpu.py] [--rounds=5]

Runs the users' command in its own process: without the cache, then with an empty one (a first
start), then with the same one again (a second start). Wall time is how long a user waits on this
machine. CPU time is how much work is done, which other programs disturb less. Prints a table of
medians, with the minimum and the maximum.
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
  """Wall and CPU seconds until the first line of metrics, and wall seconds of the compilation."""
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
  """Measures the three kinds of start in alternation."""
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
  print("| cache | seconds to the first step | CPU seconds | compilation, seconds |")
  print("|---|---|---|---|")
  for name, rows in found.items():
    cells = [
      f"{statistics.median(column):.1f} ({min(column):.1f} to {max(column):.1f})"
      for column in zip(*rows, strict=True)
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  flags.DEFINE_string("config", "configs/cifar10_cpu.py", "Config of the run.")
  flags.DEFINE_integer("rounds", 5, "How often each kind of start is timed.")
  app.run(main)
