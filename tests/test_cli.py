"""How a command ends."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from absl import flags
import pytest

from convmixer_jax import cli, convert, export, predict

ROOT = pathlib.Path(__file__).parents[1]

FAILED_TASK = """
import asyncio
from convmixer_jax import cli
from convmixer_jax.errors import UserError

async def fail():
  raise OSError("no space")

def main(argv):
  loop = asyncio.new_event_loop()
  task = loop.create_task(fail())
  loop.run_until_complete(asyncio.sleep(0.01))
  loop.close()
  raise UserError("the disk is full")

cli.run(main)
"""


def test_the_message_is_the_last_line_also_where_a_task_failed_below():
  done = subprocess.run([sys.executable, "-c", FAILED_TASK], capture_output=True, text=True)
  assert done.returncode == 1
  assert "Task exception was never retrieved" in done.stderr
  assert done.stderr.splitlines()[-1] == "error: the disk is full"


@pytest.mark.parametrize(
  "start",
  [pytest.param(["-m", "convmixer_jax.main"], marks=pytest.mark.slow), ["convmixer-train"]],
  ids=" ".join,
)
def test_help_is_the_same_however_the_command_is_started(tmp_path, start):
  script = tmp_path / "convmixer-train"
  script.write_text("from convmixer_jax.main import run\nrun()\n")  # as pip writes it
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  for flag in ("--help", "--helpshort"):
    done = subprocess.run(
      [sys.executable, *start, flag], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("`convmixer-train`, or `python -m convmixer_jax.main`: trains")
    assert re.search(
      r"\n  --config: .*\bdigits\b.*\n  --workdir: Directory of", done.stdout, re.DOTALL
    )
    assert "showprefixforinfo" not in done.stdout


@pytest.mark.parametrize("module", [convert, export, predict])
def test_the_help_of_each_command_that_has_it_shows_the_activation(module, monkeypatch):
  before = set(flags.FLAGS)
  monkeypatch.setattr(cli, "run", lambda main: None)
  try:
    module.run()
    help = flags.FLAGS.module_help(module.__name__)
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
  assert "--activation: <gelu|gelu_tanh|relu>" in help


DEAF = """
import hashlib, signal
from convmixer_jax import cli

def main(argv):
  print("begun", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as XLA's compiler: Python is not asked for long

# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(main)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", ["deaf", "in Python"])
def test_a_signal_ends_a_command_in_one_line(signum, work):
  code = DEAF if work == "deaf" else DEAF.replace("hashlib.pb", "import time; time.sleep(60) #")
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "begun\n"
  begin = time.monotonic()
  process.send_signal(signum)
  _, stderr = process.communicate(timeout=60)
  assert time.monotonic() - begin < 30
  assert (process.returncode, stderr) == (
    128 + signum,
    f"stopped by {signal.Signals(signum).name}\n",
  )


TALKS = """
from convmixer_jax import cli

def main(argv):
  for _ in range(100000):
    print("line")

cli.run(main)
"""


@pytest.mark.parametrize(("pipe", "status"), [("| head -1", 141), (">&-", 0), ("2>&-", 0)])
def test_nobody_has_to_read_what_a_command_says(pipe, status):
  cli = f"'{sys.executable}' -c '{TALKS}' {pipe}; exit ${{PIPESTATUS[0]}}"
  done = subprocess.run(["bash", "-c", cli], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (status, "")
