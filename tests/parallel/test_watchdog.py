import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HANGS = """
import time
from convmixer_jax.parallel.watchdog import Watchdog

def stuck():
  time.sleep(100)

with Watchdog({seconds}) as watchdog:
  for _ in range(6):
    time.sleep(0.25)
    watchdog.beat()
  print("beaten", flush=True)
  {then}
"""


def run(seconds, then):
  begin = time.monotonic()
  command = [sys.executable, "-c", HANGS.format(seconds=seconds, then=then)]
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
  return found, time.monotonic() - begin


def test_a_process_that_hangs_ends_with_the_place_where_it_does():
  found, seconds = run(1, "stuck()")
  assert (found.returncode, found.stdout) == (1, "beaten\n")
  assert "no step was finished for 1 seconds (config.run.stall_seconds)" in found.stderr
  assert "in stuck" in found.stderr
  assert seconds < 60


@pytest.mark.slow
def test_work_that_is_done_is_not_disturbed():
  for seconds in (1, None):
    found, _ = run(seconds, "pass")
    assert (found.returncode, found.stderr) == (0, "")
