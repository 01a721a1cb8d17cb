"""The exceptions that are shown to a user as a single line, without a traceback."""


class UserError(ValueError):
    """Something the user can put right: a wrong value, a missing file.  The message names the value and the remedy."""


class NotFiniteError(UserError, FloatingPointError):
    """A loss, a weight or a score that is NaN or infinite.  The message names it and the remedy."""


class FailedCellsError(UserError):
    """Cells that failed although nothing was mistyped; the exit status is 1, and not 2 as after a mistake."""


class DiskFullError(UserError):
    """A write for which there was no room: the same command goes on once there is some."""
