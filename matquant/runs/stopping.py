"""Stops a process at a safe point: a request is remembered until the state has been saved, and then it is obeyed."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)
_asked = _hurried = _interrupted = False


class Stopped(BaseException):
    """Raised at a safe point, after the state has been saved, because somebody asked the process to stop.

    Not an Exception: code that catches every Exception, so that one failing cell does not stop the others, must not
    catch this one.
    """


class Refused(BaseException):
    """Raised wherever the work is, when it may not start again: a library that catches every Exception lets it pass."""


def request() -> None:
    """Asks this process to stop at its next safe point; may be called from a signal handler."""
    global _asked
    _asked = True


def requested() -> bool:
    """True if this process has been asked to stop."""
    return _asked


def reset() -> None:
    """Takes the request back."""
    global _asked
    _asked = False


def hurry() -> None:
    """Asks this process to save at its next safe point and go on; may be called from a signal handler."""
    global _hurried
    _hurried = True


def hurried() -> bool:
    """True if this process has been asked to save since the last call."""
    global _hurried
    was, _hurried = _hurried, False
    return was


def give_way(what: str) -> None:
    """A safe point: raises Stopped if this process has been asked to stop."""
    if _asked:
        raise Stopped(f"stopped {what}, as asked; the state is saved")


def remember_interrupts() -> None:
    """Remembers every Ctrl-C from now on, for `interrupts_win`; it raises KeyboardInterrupt as before.

    A process that ignores Ctrl-C, as one that a script starts in the background does, goes on ignoring it.
    """
    global _interrupted
    _interrupted = False
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    signal.default_int_handler(number, frame)


@contextmanager
def interrupts_win() -> Iterator[None]:
    """Raises KeyboardInterrupt in place of an error that a Ctrl-C has caused.

    A library may turn it into another error: torch makes a ValueError of a KeyboardInterrupt that comes while
    safetensors reads a tensor.  Ctrl-C must always end the program.
    """
    try:
        yield
    except Exception as error:  # of any kind: whatever a library made of it
        if _interrupted:
            raise KeyboardInterrupt from error
        raise


@contextmanager
def at_safe_points(patience_s: float) -> Iterator[None]:
    """Lets SIGUSR2, by which a scheduler ends a job, wait for the work to reach a safe point and save its state.

    At the safe point, or after `patience_s` seconds in any case, the earlier handler is called: submitit's, which
    requeues the job and exits, or raises an error, which leaves the block unchanged.  At SIGTERM, which announces that
    the job will be killed, the work saves and goes on: the scheduler decides whether the job is requeued.  Without an
    earlier handler nothing changes.
    """
    answer = signal.getsignal(signal.SIGUSR2)
    if not callable(answer):
        yield
        return

    def ask(*_: object) -> None:
        log.info("asked to stop: going on to the next safe point")
        request()
        signal.setitimer(signal.ITIMER_REAL, patience_s)

    refused: list[Exception] = []

    def give_up(*_: object) -> None:
        log.info("no safe point for %.0f s: stopping with the state that was saved last", patience_s)
        try:
            answer(signal.SIGUSR2, None)
        except Exception as error:  # of any kind: the scheduler's refusal to start the job again
            refused.append(error)
            raise Refused(str(error)) from error

    handled = (signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in handled}
    signal.signal(signal.SIGUSR2, ask)
    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, lambda *_: hurry())
    try:
        yield
    except Stopped:
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer(signal.SIGUSR2, None)
        raise
    except BaseException as error:
        # An import that the refusal interrupts makes a ModuleNotFoundError of it.
        if refused:
            raise refused[0] from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        reset()
        for number, handler in before.items():
            signal.signal(number, handler)
