"""The files of launch/, as far as they can be checked without a cluster."""

import json
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

pytestmark = pytest.mark.slow  # the scripts are the same on any Python
ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
PARSE = """
import sys
from absl import flags
from convmixer_jax.main import define_flags, read_config
define_flags(sys.argv)
rest = flags.FLAGS(sys.argv)
read_config(None)
sys.exit(f"{rest[1:]} are no flags" if rest[1:] else 0)
"""


def check_flags(arguments):
  """Fails unless `convmixer_jax.main` accepts these flags and the config exists."""
  command = [sys.executable, "-c", PARSE, *arguments]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert run.returncode == 0, run.stderr


def commands(name):
  """The flags after launch/NAME in each command of the file's comments."""
  text = (LAUNCH / name).read_text().replace("\\\n#", " ").replace("\\\n", " ")
  return [shlex.split(tail) for tail in re.findall(rf"launch/{re.escape(name)} +(-[^\n\[]*)", text)]


@pytest.mark.parametrize("name", ["gpu.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_the_command_in_the_header_is_one_that_the_program_takes(name):
  found = commands(name)
  assert len(found) == 1
  check_flags(found[0])


def test_gpu_sh_resumes_after_a_kill_and_ends_on_sigterm(tmp_path, venv):
  environment = {**os.environ, "VENV": str(venv), "EXTRAS": "", "JAX_NUM_CPU_DEVICES": "1"}
  small = ("model.dim=8", "model.depth=1", "model.patch_size=2", "run.epochs=2000")
  command = ["bash", "launch/gpu.sh", f"--workdir={tmp_path}", "--config.run.eval_every_epochs=1"]
  command += [f"--config.{setting}" for setting in small]
  run = subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )

  def children():
    return pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()

  def wait_for_epochs(count):
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "checkpoints").glob("[0-9]*"))) < 2 or epochs() < count:
      assert run.poll() is None, run.stdout.read()
      assert time.monotonic() < deadline
      time.sleep(0.2)

  def epochs():
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return max((row["epoch"] for row in rows if row["split"] == "eval"), default=0)

  try:
    wait_for_epochs(2)
    (first,) = children()
    os.kill(int(first), signal.SIGKILL)
    wait_for_epochs(epochs() + 2)
    (second,) = children()
    assert second != first
    run.terminate()
    output, _ = run.communicate(timeout=300)
  finally:
    for process in [*children(), run.pid] if run.poll() is None else []:
      os.kill(int(process), signal.SIGKILL)
  assert run.returncode == 128 + signal.SIGTERM, output
  assert "killed by signal 9 in attempt 1 of 4" in output
  begins = [int(step) for step in re.findall(r"at step (\d+) of", output)]
  assert len(begins) == 2
  assert begins[0] == 0 < begins[1]
  assert not pathlib.Path(f"/proc/{second}").exists()


def test_gpu_sh_does_not_repeat_a_mistake(tmp_path, venv):
  environment = {**os.environ, "VENV": str(venv), "EXTRAS": ""}
  command = ["bash", "launch/gpu.sh", "--config.model.dim=wide", f"--workdir={tmp_path / 'run'}"]
  run = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )
  assert run.returncode == 1
  assert run.stderr.count("config.model.dim is 'wide'") == 1


# A fake gcloud: records each call, and exits `ssh` with the next of the given exit codes; "gone" is
# a slice that was pre-empted.
GCLOUD = """#!/bin/bash
cd "$(dirname "$0")"
echo "${*//$'\\n'/;}" >>calls
case "$4" in
  describe) cat state ;;
  create) [ "$(cat state)" = ABSENT ] && echo READY >state ;;
  delete) echo ABSENT >state ;;
  ssh)
    read -r answer <answers && sed -i 1d answers
    if [ "$answer" = gone ]; then echo PREEMPTED >state && exit 255; fi
    exit "$answer"
    ;;
esac
"""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="it sends what is committed in git")
@pytest.mark.parametrize(
  ("answers", "code", "calls"),
  [
    ("0", 0, "create scp ssh delete"),
    ("gone 0", 0, "create scp ssh delete create scp ssh delete"),
    ("143 143 143 143 143 0", 0, "create" + 6 * " scp ssh" + " delete"),
    ("137 gone 255 1 0", 0, "create scp ssh scp ssh delete create scp ssh scp ssh scp ssh delete"),
    ("137 255 134 1 0", 1, "create" + 4 * " scp ssh" + " delete"),
  ],
)
def test_tpu_pod_recreates_what_was_pre_empted(tmp_path, answers, code, calls):
  for name, text in (("gcloud", GCLOUD), ("sleep", "#!/bin/sh\n")):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / "state").write_text("ABSENT\n")
  (tmp_path / "answers").write_text(answers.replace(" ", "\n") + "\n")
  slice_of = {"TPU": "a", "ZONE": "b", "TYPE": "v5p-256", "RUNTIME": "d", "SHARE": "e:/f g"}
  environment = {**os.environ, **slice_of, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
  command = ["bash", "launch/tpu_pod.sh", "--workdir=/mnt/share/with space"]
  run = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )
  assert run.returncode == code, run.stderr
  lines = (tmp_path / "calls").read_text().splitlines()
  done = [line.split()[3] for line in lines if line.split()[3] != "describe"]
  assert " ".join(done[1:]) == calls, run.stderr  # the first deletes an old slice
  assert all("--zone=b" in line for line in lines)
  remote = next(line for line in lines if " ssh " in line)
  assert "--worker=all" in remote
  assert "sudo mount e:/f\\ g /mnt/share" in remote
  assert remote.endswith("launch/local.sh --workdir=/mnt/share/with\\ space")


def test_jobset_has_what_its_api_and_a_tpu_slice_need():
  """Checks single fields, because the schema (a megabyte) is not in the repository."""
  text = (LAUNCH / "gke_jobset.yaml").read_text()
  body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
  assert re.findall(r"\$\w+", body) == ["$IMAGE"]  # the only variable that envsubst replaces
  jobset = yaml.safe_load(text)
  assert jobset.keys() == {"apiVersion", "kind", "metadata", "spec"}
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (slices,) = jobset["spec"]["replicatedJobs"]
  assert slices.keys() == {"name", "replicas", "template"}
  job = slices["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  for name in (jobset["metadata"]["name"], slices["name"], container["name"]):
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
  # One pod for each host of the slice.
  chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
  assert job["completions"] == job["parallelism"]
  assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
  assert job["completionMode"] == "Indexed"
  assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
  check_flags(container["args"])
  assert container["command"] == ["python", "-m", "convmixer_jax.main"]


def test_jobset_restarts_without_limit_after_pre_emption_alone():
  jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
  job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  assert job["backoffLimit"] == 0
  assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
  assert pod["terminationGracePeriodSeconds"] >= 120
  code, disruption = job["podFailurePolicy"]["rules"]
  assert code == {
    "action": "FailJob",
    "onExitCodes": {"containerName": "train", "operator": "In", "values": [128 + signal.SIGTERM]},
  }
  assert disruption == {
    "action": "FailJob",
    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
  }
  assert pod["containers"][0]["name"] == "train"
  policy = jobset["spec"]["failurePolicy"]
  assert 0 < policy["maxRestarts"] < 10
  (rule,) = policy["rules"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


def test_sky_yaml_runs_the_script_for_one_node():
  task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
  known = {"name", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
  assert task.keys() == known
  assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [128 + signal.SIGTERM]}
  assert task["envs"] == {"BUCKET": None}  # must be given
  assert task["file_mounts"]["/bucket"]["source"] == "$BUCKET"
  for script in (task["setup"], task["run"]):
    subprocess.run(["bash", "-n", "-c", script], check=True, timeout=60)
  words = shlex.split(task["run"].replace("\\\n", " "))
  assert words[1:3] == ["bash", "launch/gpu.sh"]
  check_flags(words[3:])
