import json
import math

import pytest

from convmixer_jax.errors import UserError
from convmixer_jax.results.history import read_history, read_sweep

LINES = [
  {"step": 4, "epoch": 0.1818, "split": "train", "loss": 2.5, "learning_rate": 0.1},
  {"step": 22, "epoch": 1.0, "split": "eval", "loss": 1.5, "accuracy": 0.25},
  {"step": 40, "epoch": 1.8182, "split": "train", "loss": math.nan, "learning_rate": 0.2},
  {"step": 44, "epoch": 2.0, "split": "eval", "loss": 1.25, "accuracy": 0.75},
]


def test_a_run_that_goes_on(tmp_path):
  text = "".join(json.dumps(line) + "\n" for line in LINES)
  (tmp_path / "metrics.jsonl").write_text(text + '{"step": 66, "epoch": 3')
  history = read_history(tmp_path)
  assert history.name == tmp_path.name
  assert history.series("eval", "accuracy") == ([1.0, 2.0], [0.25, 0.75])
  assert history.series("train", "loss") == ([0.1818], [2.5])  # non-finite values are dropped
  assert history.series("train", "learning_rate") == ([0.1818, 1.8182], [0.1, 0.2])
  assert history.series("train", "top5_accuracy") == ([], [])
  assert history.last("eval") == LINES[-1]
  assert history.last("test") is None
  assert history.steps_per_epoch() == 22


def test_a_run_that_has_just_begun(tmp_path):
  history = read_history(tmp_path, "new")
  assert history.name == "new"
  assert history.series("train", "loss") == ([], [])
  assert history.steps_per_epoch() is None


def write_sweep(path, rows):
  (path / "sweep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_sweep_averages_over_seeds_and_takes_the_smallest_model_as_unit(tmp_path):
  rows = [
    {"model.dim": dim, "model.depth": 2, "seed": seed, "parameters": 10 * dim, "step": 9}
    | {"accuracy": accuracy, "best_accuracy": 1.0, "images_per_sec": speed}
    for dim, seed, accuracy, speed in (
      (16, 0, 0.5, 100),
      (16, 1, 0.7, 300),
      (8, 0, 0.4, 900),
      (8, 1, 0.4, 700),
    )
  ]
  write_sweep(tmp_path, rows)
  sweep = read_sweep(tmp_path)
  large, small = sweep.points
  assert (large.overrides, small.overrides) == ({"model.dim": 16}, {"model.dim": 8})
  assert (large.parameters, large.runs) == (160, 2)
  assert large.accuracy == pytest.approx(0.6)
  assert large.deviation == pytest.approx(0.1 * math.sqrt(2))
  assert (small.relative_time, large.relative_time) == (1, 800 / 200)
  assert sweep.reference() == small
  assert sweep.metric == "accuracy"
  assert sweep.directories["model.dim=16,model.depth=2,seed=0"] == "dim 16, seed 0"


def test_the_test_split_counts_where_all_runs_have_it(tmp_path):
  row = {"model.dim": 8, "parameters": 1, "accuracy": 0.5, "images_per_sec": 1}
  write_sweep(tmp_path, [row | {"test_accuracy": 0.25}])
  assert read_sweep(tmp_path).points[0].accuracy == 0.25
  write_sweep(tmp_path, [row | {"test_accuracy": 0.25}, row | {"model.dim": 16}])
  assert [point.accuracy for point in read_sweep(tmp_path).points] == [0.5, 0.5]
  write_sweep(tmp_path, [])
  with pytest.raises(UserError, match="has no finished run yet"):
    read_sweep(tmp_path)
