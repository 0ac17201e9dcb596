"""How a command ends."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

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


@pytest.mark.parametrize("start", [["-m", "convmixer_jax.main"], ["convmixer-train"]], ids=" ".join)
def test_help_is_the_same_however_the_command_is_started(tmp_path, start):
  script = tmp_path / "convmixer-train"
  script.write_text("from convmixer_jax.main import run\nrun()\n")  # as pip writes it
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  for flag in ("--help", "--helpshort"):
    command = [sys.executable, *start, flag]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("`convmixer-train`, or `python -m convmixer_jax.main`: trains")
    assert re.search(
      r"\n  --config: .*\bdigits\b.*\n  --workdir: The run's", done.stdout, re.DOTALL
    )
    assert "showprefixforinfo" not in done.stdout
