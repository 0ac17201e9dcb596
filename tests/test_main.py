"""The command as users type it, in a separate process unless that makes no difference."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

from absl import flags
import numpy as np
import PIL.Image
import pytest

from convmixer_jax import main
from convmixer_jax.data.datasets import open_source
from convmixer_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
  "--config.model.dim=8",
  "--config.model.depth=1",
  "--config.model.patch_size=2",
  "--config.data.eval_batch_size=360",
)


def start(*arguments, devices=8, module="main", **variables):
  """Runs the command in a separate process."""
  command = [sys.executable, "-m", f"convmixer_jax.{module}", *arguments]
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **variables}
  return subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )


@pytest.mark.slow
def test_digits_from_start_to_evaluation(tmp_path):
  """The unchanged default config reaches 98 %, and an evaluation reproduces its result."""
  run = start(f"--workdir={tmp_path}", devices=1, XLA_FLAGS="")  # unoptimized it takes minutes
  assert run.returncode == 0, run.stderr
  last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
  assert last["split"] == "eval"
  assert last["accuracy"] >= 0.98
  assert f"accuracy {last['accuracy']:.4g}" in run.stdout
  told, _, command = run.stdout.splitlines()[-1].partition("python -m convmixer_jax.main ")
  assert f"{tmp_path}/checkpoints/" in told
  evaluation = start(*shlex.split(command))  # as pasted
  assert evaluation.returncode == 0, evaluation.stderr
  found = json.loads(evaluation.stdout)
  # On eight devices, so the loss is summed in another order.
  np.testing.assert_allclose(found.pop("loss"), last["loss"], rtol=1e-6)
  assert found == {key: last[key] for key in found}
  assert found["num_examples"] == 360


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.model.dmi=1"], "error: config.model.dmi does not exist; did you mean config."),
    # After JAX and the data libraries are loaded.
    (["--config.data.dataset=cifar11"], 'error: config.data.dataset is "cifar11"'),
  ],
)
def test_a_mistake_ends_with_one_line_and_exit_code_1(tmp_path, arguments, message):
  run = start(f"--workdir={tmp_path / 'new'}", *arguments)
  assert run.returncode == 1, run.stderr
  assert run.stderr.splitlines()[-1].startswith(message)
  assert run.stderr.count("error") == 1 and "Traceback" not in run.stderr
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.model.dmi=1"], "config.model.dmi does not exist; did you mean config."),
    (["--config.model.dim", "wide"], "config.model.dim is 'wide'; it must be an integer"),
    (["--config=digit"], "--config=digit is neither a file nor the name of a config. Did"),
    (["--config.data.batch_size=100"], "config.data.batch_size is 100, which 8 devices"),
    (["--config.model.patch_size=3"], "config.model.patch_size is 3, which does not divide"),
    (["--config.data.dataset=cifar11"], 'config.data.dataset is "cifar11"'),
    (["--config.data.eval_split=dev"], '"dev"; digits has train and test'),
    (["--mode=eval"], "config.json does not exist: --workdir must be the directory of a run"),
    (["train"], "'train' is not a flag"),
    (["--mode=test"], "flag --mode=test: value should be one of <train|eval>"),
  ],
)
def test_mistakes_get_one_clear_message_before_any_work(run_command, tmp_path, arguments, message):
  with pytest.raises((UserError, flags.Error)) as found:
    run_command(main, f"--workdir={tmp_path / 'new'}", *arguments)
  assert message in str(found.value)
  assert not (tmp_path / "new").exists()


def test_settings_that_make_no_sense_together_with_a_finished_run(run_command, tmp_path):
  settings = (f"--workdir={tmp_path}", *SMALL, "--config.run.max_steps=3")
  run_command(main, *settings)
  with pytest.raises(UserError, match=r"config\.seed was 0 and is 1"):
    run_command(main, *settings, "--config.seed=1")
  with pytest.raises(UserError, match="--step=2 is not in"):
    run_command(main, "--mode=eval", f"--workdir={tmp_path}", "--step=2")
  found = json.loads(run_command(main, "--mode=eval", f"--workdir={tmp_path}", "--per_class"))
  count_k = np.bincount(open_source("digits", "test").labels)
  assert list(found["per_class_accuracy"]) == [str(k) for k in range(10)]
  right_k = count_k * list(found["per_class_accuracy"].values())
  np.testing.assert_allclose(right_k.sum() / count_k.sum(), found["accuracy"], rtol=1e-6)


@pytest.mark.slow
def test_weights_are_evaluated_only_when_the_command_line_says_so(run_command, tmp_path):
  """The run's checkpoint differs from its initial weights."""
  first, run = tmp_path / "first", tmp_path / "run"
  run_command(main, f"--workdir={first}", *SMALL, "--config.run.max_steps=2")
  begin = f"--config.init_from={first}"
  run_command(main, f"--workdir={run}", *SMALL, begin, "--config.run.max_steps=2")

  def evaluation(*arguments):
    return json.loads(run_command(main, "--mode=eval", f"--workdir={run}", *arguments))

  lines = [(p / "metrics.jsonl").read_text().splitlines()[-1] for p in (first, run)]
  weights, checkpoint = (json.loads(line)["loss"] for line in lines)
  assert evaluation()["loss"] == checkpoint != weights
  found = evaluation(begin)
  assert (found["loss"], found["init_from"]) == (weights, str(first))
  with pytest.raises(UserError, match="--step names a checkpoint"):
    evaluation(begin, "--step=2")


@pytest.mark.slow
def test_training_and_predicting_need_no_home(tmp_path):
  """This includes the native code compiled from C++; only its cache is lost."""
  (tmp_path / "file").touch()
  home = {"HOME": str(tmp_path / "file" / "home"), "XDG_CACHE_HOME": ""}
  run, image = tmp_path / "run", tmp_path / "digit.png"
  settings = [*SMALL, "--config.model.depthwise=native", "--config.run.max_steps=2"]
  done = start(f"--workdir={run}", *settings, devices=1, **home)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("Set XDG_CACHE_HOME to a writable directory") == 1
  PIL.Image.fromarray(np.zeros((9, 9), np.uint8)).save(image)
  done = start(f"--init_from={run}", str(image), module="predict", **home)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(str(image))


def test_settings_are_flags_as_any_other(run_command, monkeypatch):
  read = []
  monkeypatch.setattr(main, "_dispatch", lambda config, workdir: read.append(config))
  settings = ["--config.parallel.scan", "--config=cifar10_cpu", "--noconfig.augment.flip"]
  run_command(main, *settings, "--config.model.dim", "8", "--config.model.dim=16")
  (config,) = read
  assert (config.parallel.scan, config.augment.flip) == (True, False)
  assert (config.model.dim, config.data.train_split) == (16, "train")


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_ends_well(tmp_path):
  """Pipes stdout and stderr to `head -1`."""
  settings = " ".join([*SMALL, "--config.run.max_steps=8", "--config.run.log_every_steps=1"])
  command = f"'{sys.executable}' -m convmixer_jax.main --workdir='{tmp_path}' {settings} 2>&1"
  shell = f"{command} | head -1; exit ${{PIPESTATUS[0]}}"
  done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
  assert (tmp_path / "checkpoints" / "8").is_dir()
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9


@pytest.mark.slow
def test_a_signal_while_xla_compiles_ends_the_run_with_one_line(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-m", "convmixer_jax.main", f"--workdir={tmp_path}"],
    cwd=ROOT,
    env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"},
    stderr=subprocess.PIPE,
    text=True,
  )
  while "compiling the training step" not in (line := process.stderr.readline()):
    assert line, process.wait()
  process.send_signal(signal.SIGTERM)  # a shell may have made this process ignore SIGINT
  _, rest = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert rest == "stopped by SIGTERM\n"


def test_importing_the_model_is_light():
  """It initializes no device and imports nothing that only training needs."""
  code = (
    "import sys; from convmixer_jax import ConvMixer;"
    "from jax._src import xla_bridge;"
    "heavy = {'orbax', 'grain', 'tensorflow_datasets', 'sklearn', 'absl.app', 'tensorboardX'};"
    "print(xla_bridge.backends_are_initialized(), heavy & set(sys.modules))"
  )
  run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert run.stdout.strip() == "False set()", run.stderr
