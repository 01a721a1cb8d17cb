"""The time that a checkpoint took, in training.json: wall clock of all processes that worked on it in turn."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from matquant.runs.files import write_json
from matquant.runs.folder import RunDir


@contextmanager
def timed(run: RunDir, *, is_main: bool) -> Iterator[None]:
    """Adds the time of a training to that of the processes before it, which were stopped; a killed one leaves none."""
    if not is_main:
        yield
        return
    before, started = _seconds_so_far(run), time.monotonic()

    def write(*, is_done: bool) -> None:
        seconds = round(before + time.monotonic() - started, 2)
        write_json(run.training, {"seconds": seconds, "is_done": is_done})

    try:
        yield
    except BaseException:
        # Of any kind: what stopped the training may stop this write too, as a full disk does, and has to be said.
        with suppress(OSError):
            write(is_done=False)
        raise
    write(is_done=True)


def _seconds_so_far(run: RunDir) -> float:
    """The time of the stopped processes whose work is gone on with; zero for a training that begins anew."""
    try:
        recorded = json.loads(run.training.read_text(encoding="utf-8"))
        return 0.0 if recorded["is_done"] else float(recorded["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
