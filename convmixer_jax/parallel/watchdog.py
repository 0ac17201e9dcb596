"""Ends a process that makes no progress."""

import faulthandler
import os
import sys
import threading

from convmixer_jax import cli


class Watchdog:
  """Context that ends the process if `beat` is not called for too long.

  Processes that compute together wait for each other forever, so if one of them hangs, this ends
  them all. It prints an error and the stack trace of each thread to stderr. Time during which the
  whole process is suspended does not count.

  Args:
    seconds: timeout between beats, with a tolerance of +10 %; None disables the watchdog.
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
    """Reports progress."""
    self._beats += 1

  def _watch(self) -> None:
    assert self._seconds is not None
    seen, idle = self._beats, 0
    while not self._is_over.wait(self._seconds / 10):
      seen, idle = self._beats, idle + 1 if seen == self._beats else 0
      if idle == 10:
        cli.print_error(
          f"no step was finished for {self._seconds:g} seconds (config.run.stall_seconds): this "
          "process, or one that it waits for, hangs. Re-running the same command resumes from the "
          "latest checkpoint. Stack traces of this process:"
        )
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(1)  # Python's own exit would wait for the other processes
