"""`convmixer-sweep`, or `python -m convmixer_jax.sweep`: one run for each combination of settings.

  python -m convmixer_jax.sweep --config=cifar10_tf_sweep --workdir=runs/sweep \\
    --over=model.dim=128,256 --over=model.depth=4,8,12

Each run is a process with its own directory in the workdir, and its result is a line of
`sweep.jsonl`. Re-running the same command resumes a sweep that was stopped. With
`--over=seed=0,1,2`, the table has the mean and the standard deviation over the seeds.
"""

import ast
from collections.abc import Sequence
import copy
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from absl import flags
import jax
from ml_collections import config_dict

from convmixer_jax import cli, storage
from convmixer_jax import config as config_lib
from convmixer_jax.errors import UserError
from convmixer_jax.model import variables
from convmixer_jax.model.convmixer import ConvMixer
from convmixer_jax.parallel import lock
from convmixer_jax.results.history import read_history

Overrides = dict[str, Any]


def combinations(config: config_dict.ConfigDict, over: Sequence[str]) -> list[Overrides]:
  """All combinations of the values in `over`, each as {"section.key": value}.

  Args:
    config: the config to override.
    over: such as ["model.dim=128,256", "seed=0,1,2"]; the last one varies fastest.

  Raises:
    UserError: for an unknown setting or an invalid value.
  """
  axes = []
  for text in over:
    key, _, values = text.partition("=")
    try:
      axes.append([(key, value) for value in ast.literal_eval(f"[{values}]")])
    except (SyntaxError, ValueError):  # unquoted strings
      axes.append([(key, value) for value in values.split(",")])
  found = [dict(pairs) for pairs in itertools.product(*axes)]
  for overrides in found:
    config_lib.validate(_overridden(config, overrides))
  return found


def _overridden(config: config_dict.ConfigDict, overrides: Overrides) -> config_dict.ConfigDict:
  one = copy.deepcopy(config)  # keeps the types of unset keys
  for key, value in overrides.items():
    config_lib.override(one, key, str(value))  # as on the command line of the run
  return one


def parameter_count(config: config_dict.ConfigDict) -> int:
  """The number of the model's parameters. Uses no device: those are for the runs."""
  model = ConvMixer(**variables.identity(config.model))
  params = variables.shapes(model, len(config.augment.mean))["params"]
  return sum(x.size for x in jax.tree.leaves(params))


def result(config: config_dict.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
  """The last and best accuracy of a finished run, its speed and its number of parameters."""
  history = read_history(workdir)
  _, accuracies = history.series("eval", "accuracy")
  last, test = history.last("eval"), history.last("test")
  assert last is not None, workdir
  found = {
    "parameters": parameter_count(config),
    "step": last["step"],
    "accuracy": last["accuracy"],
    "best_accuracy": max(accuracies),
    "images_per_sec": statistics.median(history.series("train", "images_per_sec")[1]),
  }
  return found | ({"test_accuracy": test["accuracy"]} if test else {})


def table(rows: Sequence[tuple[Overrides, dict[str, float]]]) -> str:
  """A Markdown table; rows that differ only in the seed are aggregated."""
  groups: dict[tuple, list[dict[str, float]]] = {}
  for overrides, values in rows:
    names = tuple((key, value) for key, value in overrides.items() if key != "seed")
    groups.setdefault(names, []).append(values)
  columns = [key for key, _ in next(iter(groups))]
  measured = list(rows[0][1])
  lines = [
    "| " + " | ".join([*columns, "n", *measured]) + " |",
    "|---" * (len(columns) + 1 + len(measured)) + "|",
  ]
  for names, runs in groups.items():
    cells = [str(value) for _, value in names] + [str(len(runs))]
    for name in measured:
      numbers = [run[name] for run in runs]
      spread = f" ± {statistics.stdev(numbers):.2g}" if len(set(numbers)) > 1 else ""
      cells.append(f"{statistics.mean(numbers):.6g}{spread}")
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def sweep(config_file: pathlib.Path, workdir: pathlib.Path, over: Sequence[str]) -> str:
  """Runs all combinations one after the other, and returns the table of their results.

  If a run fails, the others still run.

  Raises:
    UserError: for an invalid setting, before the first run; at the end, if any run failed.
    KeyboardInterrupt: if a signal stopped a run.
  """
  config = config_lib.read(config_file)
  rows, failed = [], []
  for overrides in combinations(config, over):
    name = ",".join(f"{key}={value}" for key, value in overrides.items())
    settings = [f"--config.{key}={value}" for key, value in overrides.items()]
    cli = [sys.executable, "-m", "convmixer_jax.main", f"--config={config_file}"]
    print(f"== {name}", flush=True)
    run = subprocess.run([*cli, f"--workdir={workdir / name}", *settings], check=False)
    if run.returncode > 128 or run.returncode < 0:
      raise KeyboardInterrupt
    if run.returncode:
      failed.append(name)
      continue
    resolved = config_lib.read_json(workdir / name / "config.json")
    rows.append((overrides, result(resolved, workdir / name)))
    lines = [json.dumps({**overrides, **values}) + "\n" for overrides, values in rows]
    (workdir / "sweep.jsonl").write_text("".join(lines))
  if failed:
    raise UserError(f"{len(failed)} runs failed, see above: {'; '.join(failed)}")
  return table(rows)


def main(argv: Sequence[str]) -> None:
  """Runs the sweep and prints the table."""
  if len(argv) > 1:
    raise UserError(f"{argv[1]!r} is not a flag: flags begin with --")
  config_file = config_lib.path_of(flags.FLAGS.config)
  workdir = storage.path_of(flags.FLAGS.workdir or f"runs/sweep_{config_file.stem}")
  with lock.one_writer(workdir):
    print(sweep(config_file, workdir, flags.FLAGS.over))


def run() -> None:
  """The entry point."""
  flags.DEFINE_string(
    "config", None, "Config file, or the name of a config, for all runs.", required=True
  )
  flags.DEFINE_string("workdir", None, "Directory of the runs; default runs/sweep_NAME_OF_CONFIG.")
  flags.DEFINE_multi_string("over", [], "section.key=value,value,...; may be repeated.")
  cli.run(main)


if __name__ == "__main__":
  run()
