"""Losses of the same steps on one device, on eight, in two processes of four, and resumed across.

Run from the repository's root:
  python -m benchmarks.processes [--steps=20]

All devices are virtual CPU devices. The model is a small ConvMixer on scikit-learn's digits, with
BatchNorm over groups of 8 images. Each run is the command `convmixer_jax.main`. Prints a JSON line
for each run: its steps, and the largest relative difference of its losses from those of the run on
one device (first part) or of the uninterrupted run on eight (second part). Exits with 1 if a
difference exceeds 1e-5.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

from absl import app, flags
import numpy as np

LIMIT = 1e-5
SETTINGS = (
  "--config.data.group_size=8",
  "--config.model.dim=64",
  "--config.model.depth=2",
  "--config.model.kernel_size=3",
  "--config.model.patch_size=2",
  "--config.optimizer.learning_rate=0.001",
  "--config.run.log_every_steps=1",
  "--config.run.eval_every_epochs=20",
)


def run(
  workdir: pathlib.Path, steps: int, *, processes: int = 1, devices: int, fsdp: int = 1
) -> list[float]:
  """Starts or resumes a run until step `steps`; returns the losses of all its steps.

  Args:
    workdir: the run's directory.
    steps: last step.
    processes: number of processes.
    devices: devices of each process.
    fsdp: devices that share one copy of the state.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "convmixer_jax.main", f"--workdir={workdir}", *SETTINGS]
  command += [f"--config.run.max_steps={steps}", f"--config.parallel.fsdp={fsdp}"]
  if processes > 1:
    command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  started = [
    subprocess.Popen(
      command if processes == 1 else [*command, f"--process_id={index}"],
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=workdir.with_name(f"{workdir.name}.{index}.log").open("w"),
    )
    for index in range(processes)
  ]
  if any([process.wait() for process in started]):
    sys.exit(workdir.with_name(f"{workdir.name}.0.log").read_text())
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [line["loss"] for line in lines if line["split"] == "train"]


def difference(found: list[float], expected: list[float]) -> float:
  """The largest relative difference."""
  assert len(found) == len(expected), (len(found), len(expected))
  return float(np.max(np.abs(np.array(found) / np.array(expected) - 1)))


def main(argv: list[str]) -> None:
  """Prints a line for each run."""
  steps, worst = flags.FLAGS.steps, 0.0

  def report(what: str, found: list[float], expected: list[float]) -> None:
    nonlocal worst
    error = difference(found, expected)
    worst = max(worst, error)
    line = {"run": what, "steps": len(found), "first_loss": found[0], "last_loss": found[-1]}
    print(json.dumps({**line, "greatest_relative_difference": error}), flush=True)

  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    one = run(root / "one", steps, devices=1)
    report("1 device", one, one)
    whole = run(root / "eight", steps, devices=8)
    report("1 process x 8 devices", whole, one)
    report("1 x 8, fsdp=2", run(root / "eight_2", steps, devices=8, fsdp=2), one)
    report("2 x 4", run(root / "two", steps, processes=2, devices=4), one)
    report("2 x 4, fsdp=2", run(root / "two_2", steps, processes=2, devices=4, fsdp=2), one)

    third = steps // 3
    run(root / "cut", third, devices=8, fsdp=2)
    shutil.copytree(root / "cut", root / "joined")
    run(root / "cut", 2 * third, devices=4)
    cut = run(root / "cut", steps, devices=1)
    report(f"8 devices, fsdp=2, to step {third}; 4 to step {2 * third}; then 1", cut, whole)
    joined = run(root / "joined", steps, processes=2, devices=4)
    report(f"1 x 8, fsdp=2, to step {third}; then 2 x 4", joined, whole)
  sys.exit(worst > LIMIT)


if __name__ == "__main__":
  flags.DEFINE_integer("steps", 20, "Steps of each run.", lower_bound=3)
  app.run(main)
