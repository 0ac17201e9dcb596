"""What the commands have in common: their start, their way out, and a flag."""

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

_GRACE_SECONDS = 2.0  # for Python's way out, after a signal that ends the process

_leaving = threading.Lock()


def define_activation() -> None:
  """The flag --activation, for commands that read weights."""
  from convmixer_jax.model.act_norm import ACTIVATIONS  # only now: JAX is not for data workers

  flags.disclaim_key_flags()  # it is of the command that calls, whose --help then shows it
  flags.DEFINE_enum(
    "activation",
    None,
    list(ACTIVATIONS),
    "The model's, for weights that do not tell it; otherwise instead of what they tell.",
  )


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Parses the flags and calls `main`; a mistake of the user's ends in one line and exit code 1.

  A signal (Ctrl-C, SIGTERM, SIGHUP) ends the command in one line too, with exit code 128 + the
  signal's number, even while XLA compiles; `signals.Interrupt` makes an exception. If nobody
  reads stdout any more, the command ends without a word where it would print.

  Args:
    main: takes the arguments that are no flags, the command's name first.
  """
  _help_shows(main.__module__)
  repair()
  logging.getLogger("convmixer_jax").setLevel(logging.INFO)
  _stop_at_signals()

  def quietly(argv: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      # Orbax tells a dozen lines for each save, and warns of each without an accuracy.
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
    gc.collect()  # Orbax's failed tasks complain when they are freed: not after the message
    print_error(message)
    sys.exit(1)


def _help_shows(module: str) -> None:
  """Lets --help tell of the command's module also where a script of another name has started it."""
  if module != "__main__":  # which is where absl looks
    sys.modules["__main__"].__doc__ = sys.modules[module].__doc__
    for flag in flags.FLAGS.get_flags_for_module(module):
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _stop_at_signals() -> None:
  """Those that are not ignored end the process, at once or when the grace is over."""
  signums = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
  signums = [signum for signum in signums if signal.getsignal(signum) is not signal.SIG_IGN]

  def stop(signum: int, frame: types.FrameType | None) -> None:
    raise Stopped(signum)

  # Python calls handlers in the main thread alone, which may be inside XLA for minutes. The number
  # of the signal is written to this pipe at once.
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
  """Ends the process as it stands: XLA's threads cannot be stopped, and would crash on the way."""
  with _leaving:  # whoever comes first
    for child in multiprocessing.active_children():
      child.kill()
    print_error(f"stopped by {signal.Signals(signum).name}")
    settle()
    os._exit(128 + signum)


def print_line(text: str) -> None:
  """Prints a line at once, above progress bars, unless nobody can read it."""
  try:
    with tqdm.tqdm.external_write_mode():
      print(text, flush=True)
  except (OSError, ValueError):
    _drop(sys.stdout)


def print_error(text: str) -> None:
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
