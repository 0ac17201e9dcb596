"""Two processes, joined by `jax.distributed`, with four CPU devices each."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from convmixer_jax import config as config_lib
from convmixer_jax.errors import UserError
from convmixer_jax.parallel import processes as distributed
from convmixer_jax.parallel import sharding
from convmixer_jax.training.experiment import Experiment
from convmixer_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
  "data.group_size": 8,  # the images of one device
  "model.dim": 8,
  "model.depth": 1,
  "model.kernel_size": 3,
  "model.patch_size": 2,
  "optimizer.learning_rate": 0.001,
  "run.epochs": 400,
  "run.eval_every_epochs": 400,
  "run.log_every_steps": 1,
  "run.checkpoint_every_steps": 20,
}


@pytest.fixture
def config(configs):
  config = config_lib.read(configs / "digits.py")
  config.update_from_flattened_dict(SETTINGS)
  return config


def start(workdir):
  """Starts two processes of four devices, which log to `workdir`.0.log and .1.log."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command = [
    *(sys.executable, "-m", "convmixer_jax.main", f"--workdir={workdir}"),
    *(f"--config.{key}={value}" for key, value in SETTINGS.items()),
    *(f"--coordinator=localhost:{port}", "--num_processes=2"),
  ]
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
  processes = []
  for index in range(2):
    with workdir.with_name(f"{workdir.name}.{index}.log").open("w") as file:
      processes.append(
        subprocess.Popen(
          [*command, f"--process_id={index}"],
          cwd=ROOT,
          env=environment,
          stdout=subprocess.DEVNULL,
          stderr=file,
        )
      )
  return processes


def stop_after(step, processes, workdir, which, signum):
  """Signals one process once `step` is saved; returns all exit codes, and the seconds it took."""
  try:
    while not (workdir / "checkpoints" / str(step)).exists():
      assert [process.poll() for process in processes] == [None, None], log(workdir, 0)
      time.sleep(0.1)
    processes[which].send_signal(signum)
    begin = time.monotonic()
    return [process.wait(timeout=300) for process in processes], time.monotonic() - begin
  finally:
    for process in processes:
      process.kill()


def log(workdir, index):
  return workdir.with_name(f"{workdir.name}.{index}.log").read_text()


def steps(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def losses(workdir):
  """The loss of each step; checks that every step is logged once."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  found = [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]
  assert [step for step, _ in found] == list(range(1, len(found) + 1))
  return [loss for _, loss in found]


def losses_on_one_device(config, count):
  experiment = Experiment(config, sharding.make_mesh(jax.devices()[:1]))
  state, found = experiment.fresh_state(), []
  for batch in experiment.batches.iterate(0, count):
    state, values = experiment.train_step(state, experiment.shard_batch(batch))
    found.append(float(values["loss"]) / float(values["count"]))
  return found


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_stop_together(config, tmp_path):
  """The second one gets SIGTERM; then a single process with all eight devices resumes."""
  two, one = tmp_path / "two", tmp_path / "one"
  codes, _ = stop_after(20, start(two), two, 1, signal.SIGTERM)
  assert codes == [143, 143], log(two, 0) + log(two, 1)
  stopped = steps(two)[-1]
  assert stopped == len(losses(two)) >= 20  # both saved at that step, and the first one logged it
  assert "process 0 of 2, with 4 of 8 devices" in log(two, 0)
  assert "process 1: SIGTERM" in log(two, 1)
  assert "decoding" not in log(two, 1)
  assert len(list(two.glob("events.out.tfevents.*"))) == 1

  config.run.max_steps = stopped + 5
  for workdir in (two, one):
    assert train(config, workdir) is None
  np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
  np.testing.assert_allclose(losses(two)[:20], losses_on_one_device(config, 20), rtol=1e-5)
  assert losses(one)[19] < losses(one)[0] - 1e-3


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_and_none_outlives_the_other(config, tmp_path):
  """The latest checkpoint is corrupt: process 0 moves it, and both resume from the other one."""
  config.run.max_steps = 20
  train(config, tmp_path / "two")
  config.run.max_steps = 40
  train(config, tmp_path / "two")
  shutil.copytree(tmp_path / "two", tmp_path / "one")
  (tmp_path / "two" / "checkpoints" / "40" / "state" / "_METADATA").unlink()

  codes, seconds = stop_after(60, start(tmp_path / "two"), tmp_path / "two", 0, signal.SIGKILL)
  assert codes[0] == -signal.SIGKILL
  assert codes[1] not in (0, None)
  assert seconds < 1.5 * config_lib.base().run.heartbeat_seconds
  assert "another" in log(tmp_path / "two", 1)  # process died
  assert [path.name for path in (tmp_path / "two" / "unreadable_checkpoints").iterdir()] == ["40"]
  assert "moved the corrupt checkpoint of step 40" in log(tmp_path / "two", 0)

  config.run.max_steps = 60
  train(config, tmp_path / "one")
  np.testing.assert_allclose(losses(tmp_path / "two")[:60], losses(tmp_path / "one"), rtol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("host:1", 2, None), "give all three, or none"),
    (("host", 2, 0), "--coordinator=host is not HOST:PORT"),
    (("host:1", 2, 2), "--process_id=2 must be at least 0 and less than --num_processes=2"),
  ],
)
def test_flags_that_join_nothing_are_refused(arguments, message):
  with pytest.raises(UserError, match=message), distributed.initialized(*arguments):
    pass


def test_a_process_whose_peer_is_gone_says_so_last():
  """With the exception that a killed peer causes on CPUs."""
  lost = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
  lines = distributed._last_words(lost, 1, 2).splitlines()
  assert lines[-2] == f"ValueError: {lost}"
  assert lines[-1].startswith("process 1 of 2 ends with this ValueError. The cause may be that")
  assert lines[-1].endswith("Re-running the same command resumes from the latest checkpoint")
  mistake = distributed._last_words(UserError("no such data set"), 0, 2)
  assert mistake == "process 0 of 2: error: no such data set"


def test_one_process_agrees_with_itself():
  assert distributed.all_agree(True)
  assert not distributed.all_agree(False)
  assert distributed.broadcast([3, 2**31 - 1]) == [3, 2**31 - 1]
  assert distributed.broadcast([]) == []
