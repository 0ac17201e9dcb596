"""The command as users type it, in a process of its own."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
  "--config.model.dim=8",
  "--config.model.depth=1",
  "--config.model.patch_size=2",
  "--config.data.eval_batch_size=360",
)


def main(*arguments, devices=8, module="main", **variables):
  command = [sys.executable, "-m", f"convmixer_jax.{module}", *arguments]
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **variables}
  return subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )


def test_digits_from_start_to_evaluation(tmp_path):
  """The default config as it stands reaches 98 %; an evaluation finds its result again."""
  run = main(f"--workdir={tmp_path}", devices=1)
  assert run.returncode == 0, run.stderr
  last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
  assert last["split"] == "eval"
  assert last["accuracy"] >= 0.98
  assert f"accuracy {last['accuracy']:.4g}" in run.stdout
  told, _, command = run.stdout.splitlines()[-1].partition("python -m convmixer_jax.main ")
  assert f"{tmp_path}/checkpoints/" in told
  evaluation = main(*shlex.split(command))  # as it is pasted
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
    (["--config.model.dim", "wide"], "error: config.model.dim is 'wide'; it has to be an integer"),
    (["--config=digit"], "error: --config=digit is neither a file nor the name of a config. Did"),
    (["--config.data.batch_size=100"], "config.data.batch_size is 100, which 8 devices"),
    (["--config.model.patch_size=3"], "config.model.patch_size is 3, which does not divide"),
    (["--config.data.dataset=cifar11"], 'config.data.dataset is "cifar11"'),
    (["--config.data.eval_split=dev"], '"dev"; digits has train and test'),
    (["--mode=eval"], "config.json does not exist: --workdir has to be that of a run"),
    (["train"], "'train' is not a flag"),
    (["--mode=test"], "flag --mode=test: value should be one of <train|eval>"),
  ],
)
def test_mistakes_get_one_clear_message_before_any_work(tmp_path, arguments, message):
  config = [a for a in arguments if a.startswith("--config=")]
  rest = [a for a in arguments if a not in config]
  run = main(*config, f"--workdir={tmp_path / 'new'}", *rest)
  assert run.returncode == 1, run.stderr
  assert message in run.stderr
  assert "Traceback" not in run.stderr
  assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_settings_that_make_no_sense_together_with_a_finished_run(tmp_path):
  first = main(f"--workdir={tmp_path}", *SMALL, "--config.run.max_steps=3")
  assert first.returncode == 0, first.stderr
  other = main(f"--workdir={tmp_path}", *SMALL, "--config.seed=1", "--config.run.max_steps=3")
  assert other.returncode == 1
  assert "config.seed was 0 and is 1" in other.stderr
  missing = main("--mode=eval", f"--workdir={tmp_path}", "--step=2")
  assert missing.returncode == 1
  assert "--step=2 is not in" in missing.stderr


@pytest.mark.slow
def test_weights_are_evaluated_only_when_the_command_line_says_so(tmp_path):
  """The run's own checkpoint has moved away from the weights that it began with."""
  start, run = tmp_path / "start", tmp_path / "run"
  first = main(f"--workdir={start}", *SMALL, "--config.run.max_steps=2", devices=1)
  assert first.returncode == 0, first.stderr
  begin = f"--config.init_from={start}"
  tuned = main(f"--workdir={run}", *SMALL, begin, "--config.run.max_steps=2", devices=1)
  assert tuned.returncode == 0, tuned.stderr

  def evaluation(*arguments):
    found = main("--mode=eval", f"--workdir={run}", *arguments, devices=1)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)

  lines = [(p / "metrics.jsonl").read_text().splitlines()[-1] for p in (start, run)]
  weights, checkpoint = (json.loads(line)["loss"] for line in lines)
  assert evaluation()["loss"] == checkpoint != weights
  found = evaluation(begin)
  assert (found["loss"], found["init_from"]) == (weights, str(start))
  refused = main("--mode=eval", f"--workdir={run}", begin, "--step=2")
  assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
  assert "--step names a checkpoint" in refused.stderr


@pytest.mark.slow
def test_training_and_predicting_need_no_home(tmp_path):
  """All that is compiled in C++ included: only the cache is lost."""
  (tmp_path / "file").touch()
  home = {"HOME": str(tmp_path / "file" / "home"), "XDG_CACHE_HOME": ""}
  run, image = tmp_path / "run", tmp_path / "digit.png"
  flags = [*SMALL, "--config.model.depthwise=native", "--config.run.max_steps=2"]
  done = main(f"--workdir={run}", *flags, devices=1, **home)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("Set XDG_CACHE_HOME to a directory that can be written to") == 1
  PIL.Image.fromarray(np.zeros((9, 9), np.uint8)).save(image)
  done = main(f"--init_from={run}", str(image), module="predict", **home)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(str(image))


def test_settings_are_flags_as_any_other():
  code = (
    "import sys; from absl import flags; from convmixer_jax import main;"
    "main.define_flags(sys.argv); flags.FLAGS(sys.argv);"
    "config = main.read_config(None);"
    "print(config.parallel.scan, config.augment.flip, config.model.dim, config.data.train_split)"
  )
  command = [sys.executable, "-c", code, "--config.parallel.scan", "--config=cifar10_cpu"]
  command += ["--noconfig.augment.flip", "--config.model.dim", "8", "--config.model.dim=16"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout == "True False 16 train\n"


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_ends_well(tmp_path):
  """`| head -1`, stdout and stderr."""
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
  process.send_signal(signal.SIGTERM)  # a shell may have had us ignore SIGINT
  _, rest = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert rest == "stopped by SIGTERM\n"


def test_importing_the_model_is_light():
  """It takes no device, and none of what only training needs."""
  code = (
    "import sys; from convmixer_jax import ConvMixer;"
    "from jax._src import xla_bridge;"
    "heavy = {'orbax', 'grain', 'tensorflow_datasets', 'sklearn', 'absl.app', 'tensorboardX'};"
    "print(xla_bridge.backends_are_initialized(), heavy & set(sys.modules))"
  )
  run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert run.stdout.strip() == "False set()", run.stderr
