"""The command, on CPU from start to end, and on TPUs where their compiler is installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from convmixer_jax import compile as command
from convmixer_jax.aot import advice
from convmixer_jax.aot.account import Account
from convmixer_jax.errors import UserError

TINY = ("--config.model.dim=8", "--config.model.depth=1", "--config.data.eval_batch_size=64")


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
  """The tests' processes keep their eight CPU devices."""
  monkeypatch.setattr(command.targets, "prepare", lambda target, dump=None: None)


def test_digits_from_start_to_end(run_command):
  told = run_command(
    command, "--config=digits", "--target=cpux2", *TINY, "--config.data.group_size=32"
  )
  lines = told.splitlines()
  assert lines[0].startswith("digits for 2 x cpu (cpux2), batch 64, JAX ")
  assert "Depthwise convolution: expect native" in told or "expect taps" in told
  assert "Training step" in lines and "Evaluation step" in lines
  assert "all-reduce of gradients: 0.00 MB" in told
  assert lines[-1] == "It fits"


@pytest.mark.slow
def test_json_has_the_numbers(run_command):
  found = json.loads(
    run_command(command, "--target=cpu", "--json", *TINY, "--config.model.depthwise=taps")
  )
  assert found["devices"] == 1
  assert "depthwise" not in found  # it is not left open
  for name in ("train", "eval"):
    assert found[name]["refused"] is None
    assert 0 < found[name]["arguments"] < found[name]["total"] < found["memory"]
    assert found[name]["collectives"] == []
  per_image = 2 * 64 * (8 * 8 + 8 + 8 * 25) + 2 * 8 * 10
  assert found["eval"]["operations_per_image"] == per_image
  assert found["train"]["operations_per_image"] == 3 * per_image
  assert (found["verdict"], found["settings"], found["trials"]) == ("It fits", {}, [])


def test_a_small_device_gets_advice(run_command, monkeypatch):
  monkeypatch.setattr(command.targets.Target, "memory", 10**4)

  def compiled(what, lower):
    return Account(2.0, arguments=10, total=10**5)

  monkeypatch.setattr(command.account, "compiled", compiled)
  told = run_command(command, "--target=cpu", *TINY, "--config.model.depthwise=taps")
  assert "Nothing that was tried fits" in told
  assert f"--config.parallel.remat={advice.rematerializations()[1]}: 0.00 GiB, does not fit" in told


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--target=v9:2x2"], "--target=v9:2x2: allowed are such as v5e:16x16"),
    (["--target=cpux7"], "config.data.batch_size is 64, which 7 devices cannot share: set a mul"),
    (["--target=cpux8", "--config.data.eval_batch_size=9"], "config.data.eval_batch_size is 9"),
    (["--target=cpu", "--cycles"], "--cycles is for TPUs, and --target is cpu"),
    (["--target=cpu", "--config.model.dmi=1"], "config.model.dmi does not exist"),
    (["--target=cpu", "extra"], "'extra' is not a flag"),
  ],
)
def test_mistakes(run_command, arguments, message):
  with pytest.raises(UserError) as error:
    run_command(command, *arguments)
  assert message in str(error.value)


def start(*arguments):
  """Runs the command in a process of its own, which has no CPU devices of the tests."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, "-m", "convmixer_jax.compile", *arguments],
    cwd=pathlib.Path(__file__).parents[1],
    env=environment,
    capture_output=True,
    text=True,
  )
  return done


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpu_slice_from_start_to_end():
  done = start("--target=v5e:4x4", "--json", "--cycles", *TINY)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert (found["devices"], found["device_kind"]) == (16, "TPU v5 lite")
  (gradients,) = [row for row in found["train"]["collectives"] if row["part"] == "gradients"]
  assert gradients["kind"] == "all-reduce"
  assert found["train"]["roofline"]["images_per_second"] > 0
  parts = found["cycles"]["parts"]
  assert all(parts[name]["bundles"] > 0 for name in ("depthwise", "pointwise", "update"))
  assert found["cycles"]["with_floors"] >= found["cycles"]["bundles"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_slice_that_does_not_exist():
  sizes = ("--config.data.batch_size=63", "--config.data.eval_batch_size=63")
  done = start("--target=v5e:3x3", *TINY, *sizes)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: --target=v5e:3x3: ")
