"""What the commands have in common: their start, their way out, and a flag."""

from collections.abc import Callable, Sequence
import gc
import logging
import sys

from absl import app, flags
from absl import logging as absl_logging

from convmixer_jax.errors import UserError


def define_activation() -> None:
  """The flag --activation, for commands that read weights."""
  from convmixer_jax.act_norm import ACTIVATIONS  # only now: JAX is not for data workers

  flags.disclaim_key_flags()  # it is of the command that calls, whose --help then shows it
  flags.DEFINE_enum(
    "activation",
    None,
    list(ACTIVATIONS),
    "The model's, for weights that do not tell it; otherwise instead of what they tell.",
  )


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Parses the flags and calls `main`; a mistake of the user's ends in one line and exit code 1.

  Args:
    main: takes the arguments that are no flags, the command's name first.
  """
  _help_shows(main.__module__)
  logging.getLogger("convmixer_jax").setLevel(logging.INFO)

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
  if message:
    gc.collect()  # Orbax's failed tasks complain when they are freed: not after the message
    sys.exit(message)


def _help_shows(module: str) -> None:
  """Lets --help tell of the command's module also where a script of another name has started it."""
  if module != "__main__":  # which is where absl looks
    sys.modules["__main__"].__doc__ = sys.modules[module].__doc__
    for flag in flags.FLAGS.get_flags_for_module(module):
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
