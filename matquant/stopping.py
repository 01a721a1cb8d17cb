"""Stopping a process at a safe point: somebody asks, whoever has just saved what it computed answers."""

from __future__ import annotations

_asked = False


class Stopped(BaseException):
    """Raised at a safe point, after the state has been saved, because somebody asked the process to stop.

    Not an Exception: whoever keeps one failing cell from stopping the others must not keep a job from ending.
    """


def request() -> None:
    """Asks this process to stop at its next safe point; may be called from a signal handler."""
    global _asked
    _asked = True


def requested() -> bool:
    """Whether this process has been asked to stop."""
    return _asked


def reset() -> None:
    """Takes the request back."""
    global _asked
    _asked = False
