"""Lines for the user, on a terminal or a pipe that may be gone: no work depends on them."""

import contextlib
import os
import select
import sys
from typing import TextIO

import tqdm


def line(text: str) -> None:
  """Prints a line at once, above progress bars, unless nobody can read it."""
  try:
    with tqdm.tqdm.external_write_mode():
      print(text, flush=True)
  except (OSError, ValueError):
    _drop(sys.stdout)


def error(text: str) -> None:
  """The same on stderr, below progress bars."""
  try:
    print(text, file=sys.stderr, flush=True)
  except (OSError, ValueError):
    _drop(sys.stderr)


def is_terminal(stream: TextIO | None) -> bool:
  """Whether somebody looks at it; None and a closed one are nobody's."""
  return stream is not None and not stream.closed and stream.isatty()


def repair() -> None:
  """Where the process was started with stdout or stderr closed, gives it one that leads nowhere."""
  # What is opened next would else be number 1 or 2, where C++ prints.
  if sys.stdout is None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
  if sys.stderr is None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def settle() -> None:
  """Flushes both streams, so that Python has nothing left to complain of at its end."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      _drop(stream)


def is_gone() -> bool:
  """Whether nobody reads stdout any more."""
  try:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are told in any case
    return bool(poll.poll(0))
  except (OSError, ValueError):
    return False


def _drop(stream: TextIO) -> None:
  """From here on, what goes to the stream goes nowhere: what it still holds, C++'s lines too."""
  with contextlib.suppress(OSError, ValueError):  # it has no descriptor
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
