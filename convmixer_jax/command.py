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


def run(
  main: Callable[[Sequence[str]], None],
  parse_flags: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> None:
  """Parses the flags and calls `main`; a mistake of the user's ends in one line and exit code 1.

  Args:
    main: takes the arguments that are no flags, the command's name first.
    parse_flags: instead of absl's; may raise UserError, too.
  """
  logging.getLogger("convmixer_jax").setLevel(logging.INFO)

  def quietly(argv: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      # Orbax tells a dozen lines for each save, and warns of each without an accuracy.
      absl_logging.set_verbosity(absl_logging.ERROR)
    main(argv)

  message = None
  try:
    app.run(quietly, flags_parser=parse_flags) if parse_flags else app.run(quietly)
  except UserError as error:
    message = f"error: {error}"
  if message:
    gc.collect()  # Orbax's failed tasks complain when they are freed: not after the message
    sys.exit(message)
