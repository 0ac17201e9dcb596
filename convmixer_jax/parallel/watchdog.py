"""The end of a process whose work stands still."""

import faulthandler
import os
import sys
import threading

from convmixer_jax import cli


class Watchdog:
  """While this context is open, ends the process if `beat` is not called for too long.

  Processes that compute together wait for each other without end: where one of them hangs, this
  ends them all. It says so on stderr, with the place where each of the process's threads is. Time
  in which the whole process is stopped does not count.

  Args:
    seconds: without a beat, after which the process ends, at the latest after a tenth more; None
      for no watch.
  """

  def __init__(self, seconds: float | None):
    self._seconds = seconds
    self._beats = 0
    self._is_over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

  def __enter__(self) -> "Watchdog":
    if self._seconds is not None:
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._is_over.set()

  def beat(self) -> None:
    """Says that something was finished."""
    self._beats += 1

  def _watch(self) -> None:
    assert self._seconds is not None
    seen, idle = self._beats, 0
    while not self._is_over.wait(self._seconds / 10):
      seen, idle = self._beats, idle + 1 if seen == self._beats else 0
      if idle == 10:
        cli.print_error(
          f"no step was finished for {self._seconds:g} seconds (config.run.stall_seconds): this "
          "process, or one that it waits for, hangs. The same command goes on from the newest "
          "checkpoint. Where this process is:"
        )
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(1)  # Python's own way out would wait for the other processes
