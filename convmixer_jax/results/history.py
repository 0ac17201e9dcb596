"""Reads back the metrics that a run, or a sweep of runs, has written so far."""

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import statistics
from typing import Any

from convmixer_jax.errors import UserError

# Splits in `metrics.jsonl`, and their names in figures.
SPLITS = {
  "train": "training",
  "eval": "evaluation",
  "eval_ema": "evaluation, averaged weights",
  "test": "test, most accurate checkpoint",
  "train_eval": "training split, evaluated",
}


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The complete lines of a file; the last one of a killed or active run may be truncated."""
  lines = path.read_text().splitlines() if path.exists() else []
  whole = []
  for line in lines:
    try:
      whole.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return whole


@dataclasses.dataclass(frozen=True)
class History:
  """The lines of a run's `metrics.jsonl`.

  Attributes:
    name: name of the run, for a legend.
    lines: {"step", "epoch", "split", and the values}, in file order.
  """

  name: str
  lines: Sequence[dict[str, Any]]

  def series(self, split: str, key: str) -> tuple[list[float], list[float]]:
    """The epochs and values of one metric in one split, without non-finite values."""
    found = [
      (line["epoch"], line[key])
      for line in self.lines
      if line["split"] == split and math.isfinite(line.get(key, math.nan))
    ]
    return [epoch for epoch, _ in found], [value for _, value in found]

  def last(self, split: str) -> dict[str, Any] | None:
    """The last line of a split; None if there is none yet."""
    return next((line for line in reversed(self.lines) if line["split"] == split), None)

  def steps_per_epoch(self) -> int | None:
    """Steps per epoch, from the line with the highest epoch; None if there are no lines yet."""
    line = max(self.lines, key=lambda line: line["epoch"], default=None)
    return round(line["step"] / line["epoch"]) if line and line["epoch"] else None


def read_history(workdir: pathlib.Path, name: str | None = None) -> History:
  """The history of the run in `workdir`, which may have no lines yet."""
  return History(name or workdir.absolute().name, read_lines(workdir / "metrics.jsonl"))


@dataclasses.dataclass(frozen=True)
class Point:
  """Runs of a sweep that differ only in the seed.

  Attributes:
    overrides: {"section.key": value} that vary in the sweep, without the seed.
    parameters: number of parameters of the model.
    accuracy: last accuracy, averaged over the runs, in [0, 1]: on the test split if
      all runs of the sweep have it, else on the evaluation split.
    deviation: standard deviation over the runs; 0 for a single run.
    relative_time: time per epoch, relative to the point with the fewest parameters.
    runs: number of runs.
  """

  overrides: dict[str, Any]
  parameters: int
  accuracy: float
  deviation: float
  relative_time: float
  runs: int


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The finished runs of a sweep.

  Attributes:
    points: in the order of the runs.
    metric: "accuracy", or "test_accuracy" if all runs have it.
    directories: {directory of a run, relative to the workdir: its label in a legend}.
  """

  points: Sequence[Point]
  metric: str
  directories: dict[str, str]

  def reference(self) -> Point:
    """The point with the fewest parameters, whose relative time is 1."""
    return min(self.points, key=lambda point: point.parameters)


def read_sweep(workdir: pathlib.Path) -> Sweep:
  """Reads the sweep in `workdir`; its runs must all have the same number of images per epoch.

  Raises:
    UserError: if no run is finished yet.
  """
  rows = read_lines(workdir / "sweep.jsonl")
  if not rows:
    raise UserError(f"{workdir / 'sweep.jsonl'} has no finished run yet")
  metric = "test_accuracy" if all("test_accuracy" in row for row in rows) else "accuracy"
  keys = [key for key in rows[0] if "." in key or key == "seed"]
  varying = [key for key in keys if len({json.dumps(row[key]) for row in rows}) > 1]
  groups: dict[str, list[dict[str, Any]]] = {}
  directories = {}
  for row in rows:
    directory = ",".join(f"{key}={row[key]}" for key in keys)
    directories[directory] = label({key: row[key] for key in varying}) or directory
    groups.setdefault(label({k: row[k] for k in varying if k != "seed"}), []).append(row)
  seconds = {name: 1 / _mean(group, "images_per_sec") for name, group in groups.items()}
  smallest = min(groups, key=lambda name: groups[name][0]["parameters"])
  points = [
    Point(
      overrides={key: group[0][key] for key in varying if key != "seed"},
      parameters=group[0]["parameters"],
      accuracy=_mean(group, metric),
      deviation=statistics.stdev(row[metric] for row in group) if len(group) > 1 else 0.0,
      relative_time=seconds[name] / seconds[smallest],
      runs=len(group),
    )
    for name, group in groups.items()
  ]
  return Sweep(points, metric, directories)


def label(overrides: dict[str, Any]) -> str:
  """Formats overrides without their sections, such as "dim 128, depth 8"."""
  return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in overrides.items())


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
  return statistics.mean(row[key] for row in rows)
