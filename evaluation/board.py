"""The progress of an evaluation, for a person who watches: a bar with the time left, and a table that grows by plan."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from evaluation.results.metrics import KL, headline_metric, is_fraction
from matquant.runs.status import Beat

WIDTH = 9


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
    """The bars on stderr: one for all plans and, where somebody watches, one for the plan at work.

    `sizes`: the steps of each plan, in order.  `beat` is told how many of all steps are done.
    """

    def __init__(self, title: str, sizes: Mapping[str, int], beat: Beat) -> None:
        self.title, self.sizes, self.beat = title, sizes, beat
        self.head: list[str] = []

    def __enter__(self) -> Board:
        # A log file keeps every state of a bar.
        self._watched = sys.stderr.isatty()
        self._options: dict[str, Any] = {
            "unit": " answers",
            "mininterval": 0.2 if self._watched else 30.0,
            "dynamic_ncols": True,
        }
        label = f"evaluate {self.title}"
        self._overall = tqdm(total=sum(self.sizes.values()), desc=label, position=0, **self._options)
        return self

    def __exit__(self, *_: object) -> None:
        self._overall.close()

    @contextmanager
    def plan(self, name: str) -> Iterator[PlanLine]:
        """The bar of one plan; its row is written when it is done."""
        start = time.monotonic()
        options = {"position": 1, "leave": False, "disable": not self._watched, **self._options}
        with tqdm(total=self.sizes[name], desc=f"  {name}", **options) as bar:
            line = PlanLine(bar, self._overall, self.beat)
            yield line
        self._write(name, line.measured, time.monotonic() - start)

    def _write(self, name: str, measured: Mapping[str, str], seconds: float) -> None:
        if list(measured) != self.head:
            self.head = list(measured)
            tqdm.write(f"{'plan':20}" + "".join(f"  {task[:WIDTH]:>{WIDTH}}" for task in self.head), file=sys.stderr)
        row = "".join(f"  {text:>{WIDTH}}" for text in measured.values())
        tqdm.write(f"{name:20}{row}  {seconds:6.0f} s", file=sys.stderr)
