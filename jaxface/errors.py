"""The one error a user's own input can cause; the command line prints it as a single line and exits with status 2."""


class UserError(ValueError):
  """Wrong input. The message is one line: the offending value, what is legal, and the way out."""
