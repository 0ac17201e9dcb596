"""Errors that are shown to the user without a traceback, also for names and missing packages."""

from collections.abc import Collection, Iterator
import contextlib


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


def missing(package: str, extra: str) -> UserError:
  """The error for a package that is not installed, and the extra that brings it."""
  return UserError(f"{package} is not installed: pip install 'convmixer-jax[{extra}]'")


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
  """For imports of packages that only an extra brings: `with needs("train"): import grain`.

  Raises:
    UserError: if one of them is not installed; says what to install.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package in ("", "convmixer_jax"):
      raise
    raise missing(package, extra) from None
