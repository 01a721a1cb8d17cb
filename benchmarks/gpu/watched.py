"""Seconds and memory of the parts of a fit, taken while the fit runs."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import torch

from benchmarks.timing import NoProgress


def synchronize(device: torch.device) -> None:
    """Waits until the GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Steps(NoProgress):
    """`Progress` that remembers when each step of each block was done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[int, list[float]] = defaultdict(list)

    def log(self, metrics: Mapping[str, Any]) -> None:
        synchronize(self.device)
        self.times[metrics.get("block", 0)].append(time.perf_counter())

    def seconds(self, *, warm_up: int = 1) -> float:
        """The median time from one step of a block to its next, without the first ones of each block."""
        taken = [after - before for of_block in self.times.values() for before, after in pairwise(of_block[warm_up:])]
        return statistics.median(taken)


class Watched:
    """The seconds of some functions while they are watched, and the bytes that they hold above those before them.

    Functions that call each other cannot be watched together.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.above: dict[str, list[int]] = defaultdict(list)
        self.peak, self.whole = 0, 0.0
        self.calls: dict[str, tuple[Any, ...]] = {}
        """The arguments of the last call of each."""

    @contextmanager
    def watching(self, places: Mapping[str, tuple[Any, str]]) -> Iterator[None]:
        """Watches functions, given by what is said of them, as pairs of a module or a class and a name in it."""
        synchronize(self.device)
        self._begin()
        start = time.perf_counter()
        with ExitStack() as stack:
            for what, (owner, name) in places.items():
                stack.enter_context(mock.patch.object(owner, name, self._timed(what, getattr(owner, name))))
            yield
        synchronize(self.device)
        self.whole = time.perf_counter() - start
        self.peak = max(self.peak, self._most())

    def _timed(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*positional: Any, **keywords: Any) -> Any:
            synchronize(self.device)
            self.peak = max(self.peak, self._most())
            before, start = self._begin(), time.perf_counter()
            value = function(*positional, **keywords)
            synchronize(self.device)
            self.seconds[what].append(time.perf_counter() - start)
            self.above[what].append(self._most() - before)
            self.calls[what] = positional
            return value

        return timed

    def _begin(self) -> int:
        """Forgets the most memory so far, and returns what is held now."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _most(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
