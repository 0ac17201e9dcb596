"""How a command ends."""

import subprocess
import sys

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
