"""What the commands share: start-up, exit, and the flag --activation."""

from collections.abc import Callable, Sequence
import contextlib
import gc
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import types
from typing import NoReturn, TextIO

from absl import app, flags
from absl import logging as absl_logging
import tqdm

from convmixer_jax.errors import Stopped, UserError

_GRACE_SECONDS = 2.0  # for Python's own exit after a signal

_leaving = threading.Lock()


def define_activation() -> None:
  """Defines the flag --activation, for commands that read weights."""
  from convmixer_jax.model.act_norm import ACTIVATIONS  # late: data workers must not import JAX

  flags.disclaim_key_flags()  # the flag belongs to the calling command, whose --help shows it
  flags.DEFINE_enum(
    "activation",
    None,
    list(ACTIVATIONS),
    "Activation of the model, if the weights state none; otherwise it overrides theirs.",
  )


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Parses the flags and calls `main`. A `UserError` becomes one line on stderr and exit code 1.

  A signal (Ctrl-C, SIGTERM, SIGHUP) also ends the command with one line, and with exit code
  128 + the signal's number, even while XLA compiles. `signals.Interrupt` handles signals
  differently. If nobody reads stdout any more, the command exits silently at its next output.

  Args:
    main: takes the arguments that are not flags, with the command's name first.
  """
  _help_shows(main.__module__)
  repair()
  logging.getLogger("convmixer_jax").setLevel(logging.INFO)
  _stop_at_signals()

  def quietly(argv: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      # Orbax logs a dozen lines for each save, and a warning for each one without an accuracy.
      absl_logging.set_verbosity(absl_logging.ERROR)
    main(argv)

  message = None
  try:
    app.run(quietly)
  except UserError as error:
    message = f"error: {error}"
  except KeyboardInterrupt as error:
    _leave(error.signum if isinstance(error, Stopped) else signal.SIGINT)
  except BrokenPipeError:
    if not is_gone():
      raise
    sys.exit(128 + signal.SIGPIPE)
  finally:
    settle()
  if message:
    gc.collect()  # failed tasks of Orbax print when they are freed: do that before the message
    logging.disable()  # its threads may still log errors: the message is the last line
    print_error(message)
    sys.exit(1)


def _help_shows(module: str) -> None:
  """Makes --help describe the command's module even if an entry-point script started it."""
  if module != "__main__":  # where absl looks
    sys.modules["__main__"].__doc__ = sys.modules[module].__doc__
    for flag in flags.FLAGS.get_flags_for_module(module):
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _stop_at_signals() -> None:
  """Lets signals that are not ignored end the process, at the latest after the grace period."""
  signums = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
  signums = [signum for signum in signums if signal.getsignal(signum) is not signal.SIG_IGN]

  def stop(signum: int, frame: types.FrameType | None) -> None:
    raise Stopped(signum)

  # Python runs handlers only in the main thread, which may be inside XLA for minutes. The signal's
  # number is written to this pipe immediately.
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)

  def watch() -> None:
    while (signum := os.read(read_end, 1)[0]) not in signums:
      pass
    time.sleep(_GRACE_SECONDS)
    _leave(signum)

  threading.Thread(target=watch, daemon=True, name="signals").start()
  signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  for signum in signums:
    signal.signal(signum, stop)


def _leave(signum: int) -> NoReturn:
  """Ends the process without cleanup: XLA's threads cannot be stopped and would crash during it."""
  with _leaving:  # the first thread that gets here
    for child in multiprocessing.active_children():
      child.kill()
    print_error(f"stopped by {signal.Signals(signum).name}")
    settle()
    os._exit(128 + signum)


def print_line(text: str) -> None:
  """Prints a line and flushes it, above progress bars; does nothing if stdout is closed."""
  try:
    with tqdm.tqdm.external_write_mode():
      print(text, flush=True)
  except (OSError, ValueError):
    _drop(sys.stdout)


def print_error(text: str) -> None:
  """Same on stderr, below progress bars."""
  try:
    print(text, file=sys.stderr, flush=True)
  except (OSError, ValueError):
    _drop(sys.stderr)


def is_terminal(stream: TextIO | None) -> bool:
  """Whether the stream is an open terminal."""
  return stream is not None and not stream.closed and stream.isatty()


def repair() -> None:
  """Opens /dev/null as stdout or stderr if the process was started with that stream closed."""
  # Otherwise the next file to be opened would get descriptor 1 or 2, to which C++ prints.
  if sys.stdout is None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
  if sys.stderr is None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def settle() -> None:
  """Flushes both streams, since a flush that fails at Python's exit would print an error."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      _drop(stream)


def is_gone() -> bool:
  """Whether nobody reads stdout any more."""
  try:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    return bool(poll.poll(0))
  except (OSError, ValueError):
    return False


def _drop(stream: TextIO) -> None:
  """Redirects the stream to /dev/null, including its buffer and the output of C++ code."""
  with contextlib.suppress(OSError, ValueError):  # the stream has no descriptor
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
