"""The words of a part of the GPU check: one line for each thing that it measured or held against something else."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

PREFIX = "gpu-check: "
"""The beginning of every line of a part's output that the check reads; libraries print what they like beside it."""
GOOD_TO = 2.0
"""The factor to which an estimate claims to be good (`slurm/estimate.py`)."""


@dataclass(frozen=True)
class Line:
    """One measurement, with the estimate or the rival that it is held against, or one statement that holds or does not.

    `value` and `against` have one unit; `against_what` says what the second is ("estimate", "lm-eval's HFLM").
    `failed` says in words what is wrong, and is empty where nothing is.
    """

    what: str
    value: float | None = None
    unit: str = ""
    against: float | None = None
    against_what: str = ""
    note: str = ""
    failed: str = ""

    @property
    def ratio(self) -> float | None:
        if self.value is None or not self.against:
            return None
        return self.value / self.against


@dataclass(frozen=True)
class Scale:
    """The device, and whether models are tiny (tests, a laptop) or of real shapes (a GPU with 80 GB)."""

    device: torch.device
    small: bool

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"


def estimated(what: str, value: float, estimate: float, unit: str, *, scale: Scale, note: str = "") -> Line:
    """A measurement beside an estimate; at real size on a GPU a factor above two is a failure."""
    line = Line(what, value, unit, estimate, "estimate", note)
    if scale.small or scale.device.type == "cpu" or line.ratio is None or 1 / GOOD_TO <= line.ratio <= GOOD_TO:
        return line
    words = f"{value:.3g} {unit} measured, {estimate:.3g} estimated: {line.ratio:.2g} times as much"
    return Line(**{**asdict(line), "failed": words})


def holds(what: str, difference: float, bound: float, *, unit: str = "", note: str = "") -> Line:
    """A difference that may be as large as a bound, and no larger; NaN is larger."""
    failed = "" if difference <= bound else f"{difference:.3g} {unit}, more than {bound:.3g}".replace(" ,", ",")
    return Line(what, difference, unit, bound, "bound", note, failed)


def seconds_of(action: Callable[[], object], *, repeats: int, device: torch.device, warm_up: int = 1) -> float:
    """The median of some runs in seconds, by CUDA's own events on a GPU."""
    import statistics
    import time

    taken = []
    for number in range(warm_up + repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            action()
            end.record()
            torch.cuda.synchronize(device)
            seconds = begin.elapsed_time(end) / 1e3
        else:
            start = time.perf_counter()
            action()
            seconds = time.perf_counter() - start
        if number >= warm_up:
            taken.append(seconds)
    return statistics.median(taken)


class Peak:
    """The most memory that torch holds on a GPU from here on, in bytes; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


def run_part(part: Callable[[Scale], Iterator[Line]], description: str | None) -> None:
    """The command line of a part: prints a line of JSON for each of its lines, as soon as it is there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny models, seconds: what the tests run on a CPU")
    options = parser.parse_args()
    scale = Scale(torch.device(options.device), options.small)
    for line in part(scale):
        print(PREFIX + json.dumps(asdict(line)), flush=True)
    sys.stdout.flush()
