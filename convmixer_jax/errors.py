"""The exceptions that are shown to the user without a traceback."""


class UserError(Exception):
  """A mistake that its message names together with the way to mend it."""


class DamagedError(UserError):
  """An example that cannot be read or decoded; a run skips a few of them."""
