"""The one exception that is shown to the user without a traceback."""


class UserError(Exception):
  """A mistake that its message names together with the way to mend it."""
