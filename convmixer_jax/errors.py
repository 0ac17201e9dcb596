"""Exceptions that are shown to the user without a traceback, and a check of names."""

from collections.abc import Collection


class UserError(Exception):
  """A mistake of the user's. The message says what is wrong and how to fix it."""


class Stopped(KeyboardInterrupt):
  """A signal that ends the process without a save.

  Attributes:
    signum: the number of the signal.
  """

  def __init__(self, signum: int):
    super().__init__(signum)
    self.signum = signum


class CorruptError(UserError):
  """An example that cannot be read or decoded. A run tolerates `config.run.max_corrupt` of them."""


def check_name(what: str, name: str, allowed: Collection[str]) -> None:
  """Rejects unknown names, which must not fall through to a default.

  Raises:
    ValueError: says what the name is for, the name and the allowed ones.
  """
  if name not in allowed:
    raise ValueError(f"{what} is {name!r}; allowed: {', '.join(allowed)}")
