"""launch/slurm.sbatch on a Slurm of one node, started here (Debian: slurm-wlm and munge)."""

import contextlib
import getpass
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from convmixer_jax import pretrained

ROOT = pathlib.Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin"
PROGRAMS = {
  name: shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd", "sbatch")
}

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(None in PROGRAMS.values(), reason="slurm-wlm and munge are not installed"),
]

# Requeued jobs wait until their old credentials expire, by default two minutes.
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=300
MessageTimeout=100
SlurmdTimeout=3600
ReturnToService=2
NodeName=localhost CPUs=2
PartitionName=all Nodes=localhost Default=YES
"""


def wait_until(is_so, what, seconds=1800):
  """Polls until the answer is true, and returns it; the timeout is long, for busy machines."""
  deadline = time.monotonic() + seconds
  while not (answer := is_so()):
    assert time.monotonic() < deadline, f"{what} did not happen within {seconds} seconds"
    time.sleep(0.2)
  return answer


def free_ports(count):
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for s in sockets:
      s.bind(("127.0.0.1", 0))
    return [s.getsockname()[1] for s in sockets]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, venv):
  """`slurm(command, ...)` runs one of Slurm's commands on the cluster and returns its output."""
  root = tmp_path_factory.mktemp("slurm")
  for name in ("state", "spool"):
    (root / name).mkdir()
  key = root / "munge.key"
  key.write_bytes(secrets.token_bytes(128))
  key.chmod(0o400)
  controller, daemon = free_ports(2)
  settings = {"controller": controller, "daemon": daemon, "user": getpass.getuser(), "root": root}
  (root / "slurm.conf").write_text(CONF.format(**settings))
  outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
  environment = {
    **outside,
    "PATH": PATH,
    "SLURM_CONF": str(root / "slurm.conf"),
    "VENV": str(venv),
    "EXTRAS": "",
    "JAX_NUM_CPU_DEVICES": "1",
  }
  files = (("key-file", key), *((f"{n}-file", root / f"munge.{n}") for n in ("pid", "seed", "log")))
  munge = [f"--{name}={path}" for name, path in files]
  daemons = []

  def start(name, *arguments):
    with (root / f"{name}.out").open("wb") as out:
      command = [PROGRAMS[name], *arguments]
      # In a separate session, so that signals from the terminal do not reach it.
      daemons.append(
        subprocess.Popen(
          command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
      )

  def slurm(*command):
    return subprocess.run(
      command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=300
    ).stdout.strip()

  try:
    # Forced, because a parent directory, /tmp, is writable by everyone.
    start("munged", "--foreground", "--force", f"--socket={root}/munge.socket", *munge)
    wait_until((root / "munge.socket").exists, "munge's start")
    start("slurmctld", "-D")
    start("slurmd", "-D", "-N", "localhost")
    wait_until(
      lambda: answers(slurm, "sinfo", "--noheader", "--format=%T") == "idle", "an idle node"
    )
    yield slurm
    for job in answers(slurm, "squeue", "--noheader", "--format=%i").split():
      slurm("scancel", "--signal=KILL", "--full", job)
      slurm("scancel", job)
    wait_until(lambda: answers(slurm, "squeue", "--noheader") == "", "the end of all jobs")
  finally:
    for process in reversed(daemons):
      process.terminate()
      try:
        process.wait(60)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(slurm, *command):
  """The output, or "" while the controller does not respond."""
  try:
    return slurm(*command)
  except subprocess.CalledProcessError:
    return ""


def submit(slurm, workdir):
  """Submits the digits run with two tasks; returns the job's number and its log file.

  Each group is on one device, because communication between processes is slow on a busy machine.
  """
  log = workdir.with_suffix(".log")
  options = ("--parsable", "--ntasks-per-node=2", f"--output={log}")
  flags = (f"--workdir={workdir}", "--config.data.group_size=32")
  return slurm("sbatch", *options, "launch/slurm.sbatch", *flags), log


def end_of(slurm, job, log):
  """Waits for the job to end; returns its state, exit code and restarts as reported by Slurm."""

  def ended():
    fields = dict(re.findall(r"(\w+)=(\S*)", slurm("scontrol", "--oneliner", "show", "job", job)))
    over = fields["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    return over and (fields["JobState"], fields["ExitCode"], int(fields["Restarts"]))

  try:
    return wait_until(ended, "the job's end")
  finally:
    print(log.read_text() if log.exists() else "the job has no log")


def rows(workdir):
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  # The last line may be incomplete.
  return [json.loads(line) for line in lines if line.endswith("}")]


def evaluations(workdir):
  return [row for row in rows(workdir) if row["split"] == "eval"]


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
  """The workdir of the digits run with two tasks, and its log."""
  workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
  job, log = submit(slurm, workdir)
  assert end_of(slurm, job, log) == ("COMPLETED", "0:0", 0)
  return workdir, log.read_text()


def test_digits_run_of_two_tasks(undisturbed):
  workdir, log = undisturbed
  for process in range(2):
    assert f"process {process} of 2, with 1 of 2 devices" in log
  last = evaluations(workdir)[-1]
  assert last["accuracy"] >= 0.98
  assert (last["epoch"], last["num_examples"]) == (20, 360)
  assert len(list(workdir.glob("**/metrics.jsonl"))) == 1
  steps = [row["step"] for row in rows(workdir) if row["split"] == "train"]
  assert steps == sorted(set(steps))  # only one process wrote


def test_a_stopped_job_saves_and_its_resumption_ends_as_if_undisturbed(
  slurm, undisturbed, tmp_path
):
  workdir = tmp_path / "run"
  job, log = submit(slurm, workdir)

  def begins():
    return [int(step) for step in re.findall(r"at step (\d+) of", log.read_text())]

  def newest():
    return max((row["step"] for row in rows(workdir)), default=0)

  wait_until(lambda: newest() > 0, "the first line of metrics")
  slurm("scancel", "--signal=TERM", job)  # to the tasks only, as before the time limit
  wait_until(lambda: len(begins()) == 2 and newest() > begins()[1], "going on")
  slurm("scontrol", "requeue", job)  # to the script and srun too, as in a pre-emption
  assert end_of(slurm, job, log) == ("COMPLETED", "0:0", 2)
  assert len(begins()) == 3
  assert begins()[0] == 0 < begins()[1] < begins()[2]  # each resumes from the save at the stop
  assert evaluations(workdir) == evaluations(undisturbed[0])
  _, found = pretrained.load(workdir)
  _, expected = pretrained.load(undisturbed[0])
  jax.tree.map(np.testing.assert_array_equal, found, expected)
