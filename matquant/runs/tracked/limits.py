"""Time limits of calls to a tracker, and the words of its errors."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, or its exception; TimeoutError after some seconds, while the call is left to itself."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # one that ends a program ends this thread alone
            errors.append(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    thread = Thread(target=run, daemon=True)  # a process does not wait for it at its end
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds} s")
    return results[0]


def one_line(error: object) -> str:
    """The words of an error, in one line that is not long."""
    words = " ".join(str(error).split()).partition(" For further information visit")[0].rstrip(".")
    words = words or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} ..."
