"""How a command ends."""

import signal
import subprocess
import sys
import time

import pytest

FAILED_TASK = """
import asyncio
from convmixer_jax import command
from convmixer_jax.errors import UserError

async def fail():
  raise OSError("no space")

def main(argv):
  loop = asyncio.new_event_loop()
  task = loop.create_task(fail())
  loop.run_until_complete(asyncio.sleep(0.01))
  loop.close()
  raise UserError("the disk is full")

command.run(main)
"""


def test_the_message_is_the_last_line_also_where_a_task_failed_below():
  done = subprocess.run([sys.executable, "-c", FAILED_TASK], capture_output=True, text=True)
  assert done.returncode == 1
  assert "Task exception was never retrieved" in done.stderr
  assert done.stderr.splitlines()[-1] == "error: the disk is full"


DEAF = """
import hashlib, signal
from convmixer_jax import command

def main(argv):
  print("begun", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as XLA's compiler: Python is not asked for long

# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
command.run(main)
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
from convmixer_jax import command

def main(argv):
  for _ in range(100000):
    print("line")

command.run(main)
"""


@pytest.mark.parametrize(("pipe", "status"), [("| head -1", 141), (">&-", 0), ("2>&-", 0)])
def test_nobody_has_to_read_what_a_command_says(pipe, status):
  command = f"'{sys.executable}' -c '{TALKS}' {pipe}; exit ${{PIPESTATUS[0]}}"
  done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (status, "")
