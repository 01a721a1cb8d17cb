"""Words and exit statuses of every subcommand: log lines on stderr, one sentence for a mistake."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast

from matquant.disk import in_words
from matquant.errors import FailedCellsError, UserError

FAILED = 1
MISTAKE = 2
INTERRUPTED = 130


class _WithoutBars:
    """A log file as stderr: it takes every line, and none of the states of a progress bar, whoever draws it.

    A bar goes back to the start of its line before each state; switches of their own are known to a few libraries, and
    only before they are imported.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._dropped = stream, False

    def write(self, text: str) -> int:
        if text.startswith("\r") or (self._dropped and text == "\n"):  # a bar that ends leaves its line
            self._dropped = text != "\n"
            return len(text)
        self._dropped = False
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def log_to_stderr() -> None:
    """Sends the project's messages to stderr, and of everything else only warnings; no bars into a file."""
    if not sys.stderr.isatty() and not isinstance(sys.stderr, _WithoutBars):
        sys.stderr = cast(TextIO, _WithoutBars(sys.stderr))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("matquant", "evaluation", "analysis"):
        logging.getLogger(ours).setLevel(logging.INFO)


def ended(work: Callable[[], int | None]) -> int:
    """Runs some work and returns its exit status: its own, 1 after failed cells, 2 after a mistake, 130 after Ctrl-C.

    A mistake and Ctrl-C are one sentence on stderr.  Every other exception is our bug and keeps its traceback.
    """
    try:
        with in_words():
            status = work() or 0
            sys.stdout.flush()
    except UserError as error:
        say(error)
        return status_of(error)
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is on disk, the same command continues", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        # Without this, Python complains once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def fail(error: UserError) -> NoReturn:
    """Ends the program with one sentence, where an exception would pass through another library."""
    say(error)
    sys.exit(status_of(error))


def status_of(error: UserError) -> int:
    return FAILED if isinstance(error, FailedCellsError) else MISTAKE


def say(error: UserError) -> None:
    """Prints a mistake; ranks other than the main one say which they are."""
    rank = os.environ.get("RANK", "0")
    print(f"error: {error}" if rank == "0" else f"rank {rank}: error: {error}", file=sys.stderr)


def _reader_has_left() -> bool:
    """True if nobody reads stdout any more: `head`, for example, closes it after a few lines."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))
