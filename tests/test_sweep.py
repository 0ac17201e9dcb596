import json
import os
import pathlib
import subprocess
import sys

import pytest

from convmixer_jax import config as config_lib
from convmixer_jax import sweep
from convmixer_jax.errors import UserError
from tests.model.test_convmixer import COUNTS

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = ROOT / "configs" / "digits.py"


@pytest.fixture
def config():
  return config_lib.read(DIGITS)


def test_combinations(config):
  over = ["model.dim=128,256", "model.activation=relu", "seed=0,1", "optimizer.clip_norm=None"]
  found = sweep.combinations(config, over)
  rest = {"model.activation": "relu", "optimizer.clip_norm": None}
  assert found == [{"model.dim": dim, "seed": seed} | rest for dim in (128, 256) for seed in (0, 1)]
  assert sweep.combinations(config, []) == [{}]


@pytest.mark.parametrize(
  ("over", "message"),
  [
    ("model.width=8", r"config.model.width does not exist; config.model has: .*dim"),
    ("model.dmi=8,16", r"config.model.dmi does not exist; did you mean config.model.dim\?"),
    ("model.dim=8,wide", r"config.model.dim is 'wide'; it must be an integer"),
    ("optimizer.learning_rate=1,inf", r"config.optimizer.learning_rate is inf; only finite"),
    ("model.patch_size=1,3", r"patch_size is 3, which does not divide"),
    ("model.activation=relu,elu", r"activation is 'elu'; allowed"),
  ],
)
def test_wrong_settings_are_named_before_any_run(config, over, message):
  with pytest.raises(UserError, match=message):
    sweep.combinations(config, [over])


@pytest.mark.parametrize("row", COUNTS[::4], ids=str)
def test_parameter_count(config, row):
  dim, depth, kernel_size, patch_size, num_classes, count = row
  config.model.update(
    dim=dim, depth=depth, kernel_size=kernel_size, patch_size=patch_size, num_classes=num_classes
  )
  config.augment.mean = (0.5,) * 3
  assert sweep.parameter_count(config) == count


def test_table_averages_over_seeds():
  rows = [
    ({"model.dim": dim, "seed": seed}, {"parameters": dim, "accuracy": accuracy})
    for dim, seed, accuracy in ((8, 0, 0.5), (8, 1, 0.7), (16, 0, 0.9))
  ]
  assert sweep.table(rows).splitlines() == [
    "| model.dim | n | parameters | accuracy |",
    "|---|---|---|---|",
    "| 8 | 2 | 8 | 0.6 ± 0.14 |",
    "| 16 | 1 | 16 | 0.9 |",
  ]


@pytest.mark.slow
def test_a_sweep_from_the_command_line_goes_on_where_it_was(tmp_path):
  command = [sys.executable, "-m", "convmixer_jax.sweep", f"--config={DIGITS}"]
  command += [f"--workdir={tmp_path}", "--over=model.dim=4,8", "--over=model.depth=0"]
  command += ["--over=run.max_steps=3", "--over=data.eval_batch_size=360"]

  def run():
    done = subprocess.run(
      command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-2:], (tmp_path / "sweep.jsonl").read_text()

  table, lines = run()
  assert [json.loads(line)["model.dim"] for line in lines.splitlines()] == [4, 8]
  assert [json.loads(line)["step"] for line in lines.splitlines()] == [3, 3]
  assert table[0].startswith("| 4 | 0 | 3 | 360 | 1 | ")
  assert run() == (table, lines)
