"""The exceptions that are shown to the user without a traceback, and the check of names."""

from collections.abc import Collection


class UserError(Exception):
  """A mistake that its message names together with the way to mend it."""


class Stopped(KeyboardInterrupt):
  """A signal that ends the process; nothing of its work has to be saved.

  Attributes:
    signum: the signal.
  """

  def __init__(self, signum: int):
    super().__init__(signum)
    self.signum = signum


class CorruptError(UserError):
  """An example that cannot be read or decoded; a run skips a few of them."""


def check_name(what: str, name: str, allowed: Collection[str]) -> None:
  """Unknown names must not fall through to a default.

  Raises:
    ValueError: naming what it is, the name and those that are allowed.
  """
  if name not in allowed:
    raise ValueError(f"{what} is {name!r}; allowed: {', '.join(allowed)}")
