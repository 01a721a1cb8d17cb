"""The one exception that is shown to a user as a single line, without a traceback."""


class UserError(ValueError):
    """Something the user can put right: a wrong value, a missing file.  The message names the value and the remedy."""
