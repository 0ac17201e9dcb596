"""The exceptions that are shown to the user without a traceback."""


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


class DamagedError(UserError):
  """An example that cannot be read or decoded; a run skips a few of them."""
