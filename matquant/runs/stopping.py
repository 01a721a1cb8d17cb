"""Stopping a process at a safe point: somebody asks, whoever has just saved what it computed answers."""

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

    Not an Exception: whoever keeps one failing cell from stopping the others must not keep a job from ending.
    """


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
    """From now on a Ctrl-C is remembered, for `interrupts_win`; it raises KeyboardInterrupt as before.

    Where it is ignored, as in what a script starts in the background, it stays so.
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
    """Raises KeyboardInterrupt in the place of an error that came of one.

    A library may make another error of it: torch makes a ValueError of a KeyboardInterrupt that comes while safetensors
    reads a tensor.  Ctrl-C must always end the program.
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

    Whoever listened to the signal before (submitit, which requeues the job and exits) is told then; or after
    `patience_s` seconds in any case, with whatever was saved last.  At SIGTERM, which announces that the job will be
    killed, the work saves and goes on: whether it is requeued is not for it to say.  Changes nothing where nobody
    listens.
    """
    answer = signal.getsignal(signal.SIGUSR2)
    if not callable(answer):
        yield
        return

    def ask(*_: object) -> None:
        log.info("asked to stop: going on to the next safe point")
        request()
        signal.setitimer(signal.ITIMER_REAL, patience_s)

    def give_up(*_: object) -> None:
        log.info("no safe point for %.0f s: stopping with the state that was saved last", patience_s)
        answer(signal.SIGUSR2, None)

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
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        reset()
        for number, handler in before.items():
            signal.signal(number, handler)
