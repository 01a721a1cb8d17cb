"""Progress bars: on a terminal as tqdm draws them, and in a log file plain lines, one a minute."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS, DELAY = 60.0, 5.0
"""The time between two lines of a log file, and before the first: what is done at once is not worth one."""
LINE = "{desc}: {n_fmt} of {total_fmt} {unit} after {elapsed}, {remaining} left{postfix}"


class _Lines:
    """A stream that takes the states of a bar and writes each as a line of its own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        # tqdm goes back to the start of its line before each state, and pads what was longer before.
        if line := text.strip("\r\n "):
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


def bar(
    desc: str, *, total: int = 0, unit: str = "steps", initial: int = 0, disable: bool = False, **look: Any
) -> tqdm:
    """A bar on stderr; where nobody watches, lines of plain text.  It counts either way, unless it is disabled."""
    if sys.stderr.isatty():
        look = {"dynamic_ncols": True, **look}
        return tqdm(desc=desc, total=total, unit=f" {unit}", initial=initial, disable=disable, **look)
    lines: Any = _Lines(sys.stderr)
    plain: dict[str, Any] = {"file": lines, "mininterval": SECONDS, "miniters": 1, "delay": DELAY, "bar_format": LINE}
    return tqdm(desc=desc, total=total, unit=unit, initial=initial, disable=disable, **plain)
