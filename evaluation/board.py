"""The progress of an evaluation, for a person who watches: a bar with the time left, and a table that grows by plan."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from evaluation.results.metrics import KL, headline_metric, is_fraction
from matquant.runs.bars import bar
from matquant.runs.status import Beat

WIDTH = 9
"""The least width of a column; a longer name makes it wider."""


def duration(seconds: float) -> str:
    """A duration in words: 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class PlanLine:
    """The line of one plan: its bar, and its measured values."""

    def __init__(self, bar: tqdm, overall: tqdm, beat: Beat) -> None:
        self._bar, self._overall, self._beat = bar, overall, beat
        self.measured: dict[str, str] = {}

    def update(self, n: int = 1, /) -> None:
        self._bar.update(n)
        self._overall.update(n)
        self._beat(int(self._overall.n), int(self._overall.total))

    def add(self, task: str, metrics: Mapping[str, float]) -> None:
        name = headline_metric(metrics)
        if name is not None:
            # Shares of right answers in percent; nats and the metrics of other tasks as they are.
            self.measured[task] = f"{100 * metrics[name]:.1f}" if is_fraction(name) else f"{metrics[name]:.3f}"
        if KL in metrics:
            self.measured[KL] = f"{metrics[KL]:.2g}"


class Board:
    """The bars on stderr, one for all plans and, where somebody watches, one for the plan at work; and the table.

    `sizes`: the steps of each plan, in order.  `beat` is told how many of all steps are done.
    """

    def __init__(self, title: str, sizes: Mapping[str, int], beat: Beat) -> None:
        self.title, self.sizes, self.beat = title, sizes, beat
        self.head: list[str] = []

    def __enter__(self) -> Board:
        self._watched = sys.stderr.isatty()
        self._look: dict[str, Any] = {"unit": "answers", "mininterval": 0.2}
        self._overall = bar(f"evaluate {self.title}", total=sum(self.sizes.values()), position=0, **self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._overall.close()

    @contextmanager
    def plan(self, name: str) -> Iterator[PlanLine]:
        """The bar of one plan; its row is written when it is done."""
        start = time.monotonic()
        look = {"position": 1, "leave": False, "disable": not self._watched, **self._look}
        with bar(f"  {name}", total=self.sizes[name], **look) as shown:
            line = PlanLine(shown, self._overall, self.beat)
            yield line
        self._write(name, line.measured, time.monotonic() - start)

    def _write(self, name: str, measured: Mapping[str, str], seconds: float) -> None:
        if list(measured) != self.head:
            self.head = list(measured)
            tqdm.write(self._row("plan", {task: task for task in self.head}, "time"), file=sys.stderr)
        tqdm.write(self._row(name, measured, duration(seconds)), file=sys.stderr)

    def _row(self, name: str, texts: Mapping[str, str], seconds: str) -> str:
        """A line of the table; every column is as wide as its name, and the first as the longest plan."""
        plan = max(map(len, ["plan", *self.sizes]))
        columns = (f"  {text:>{max(WIDTH, len(task))}}" for task, text in texts.items())
        return f"{name:{plan}}{''.join(columns)}  {seconds:>7}"
