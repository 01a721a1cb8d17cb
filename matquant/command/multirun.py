"""A multirun as it goes on: its points in words, those that were refused or failed, their objectives, the time left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from matquant.command.terminal import status_of
from matquant.config.study import Study
from matquant.config.sweep import Point, is_of_hydra
from matquant.config.syntax.overrides import key_of
from matquant.errors import FailedCellsError, UserError

log = logging.getLogger(__name__)
NAMED = 3
"""Points that a sentence names one by one."""

current: Multirun | None = None
"""The multirun that this process leads; a job of Hydra's launcher works on one point and leads none."""


@dataclass
class Multirun:
    """The points of a multirun.

    `total`: their number, where it is known.  `keys`: the keys that are swept, which name a point.  `admit` gives the
    study of a point; UserError for one that cannot be run.
    """

    admit: Callable[[Point], Study]
    keys: frozenset[str] = frozenset()
    total: int | None = None
    goals: Sequence[str] = ()
    higher: Sequence[bool] = ()
    """For each objective: true if it is better the higher it is."""
    is_drawn: bool = False
    """True if a sweeper draws the points: it may draw some that cannot be run, and goes on."""
    is_forecast: bool = False
    """True if somebody else forecasts the time that is left."""
    jobs: str = ""
    """The end of a sentence about jobs that outlive this process."""
    composed: list[tuple[Point, Study]] = field(default_factory=list)
    """Every point that has a study; a joint report shows those that failed as gaps."""
    measured: list[tuple[Point, Sequence[float]]] = field(default_factory=list)
    failed: list[tuple[Point, UserError]] = field(default_factory=list)
    num_started: int = 0
    _announced: set[tuple[str, ...]] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    def announce(self, refused: Sequence[tuple[Point, UserError]]) -> None:
        """Says, before the first point begins, which ones are refused."""
        self._announced |= {tuple(point) for point, _ in refused}
        for reason in self._reasons(refused):
            log.error("refused: %s", reason)
        if refused:
            log.error("%d of %d points are run", (self.total or 0) - len(refused), self.total)

    def _reasons(self, points: Sequence[tuple[Point, UserError]]) -> list[str]:
        """Every reason once, with the points that it is about."""
        of: dict[str, list[str]] = {}
        for point, error in points:
            of.setdefault(str(error), []).append(self.name_of(point))
        return [
            f"{', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}: {reason}"
            for reason, names in of.items()
        ]

    def begin(self, point: Point) -> Study | None:
        """The study of the next point; None, and a sentence, if it is refused."""
        self.num_started += 1
        try:
            study = self.admit(point)
        except UserError as error:
            self.failed.append((point, error))
            if tuple(point) not in self._announced:
                log.error("%s is refused: %s", self.name_of(point), error)
            return None
        if point not in [known for known, _ in self.composed]:
            self.composed.append((point, study))
        return study

    def lose(self, point: Point, error: UserError) -> None:
        """Keeps a point that has failed."""
        self.failed.append((point, error))
        log.error("%s has failed: %s", self.name_of(point), error)

    def measure(self, point: Point, values: Sequence[float]) -> None:
        self.measured.append((point, values))
        if self.goals or self.outlook():
            numbers = f": {self.in_words(values)}" if self.goals else " is measured"
            log.info("%s%s%s", self.name_of(point), numbers, self.outlook())

    @property
    def runnable(self) -> list[tuple[Point, Study]]:
        """The points that are known so far and not refused."""
        return [(point, study) for point, study in self.composed if tuple(point) not in self._announced]

    @property
    def num_ended(self) -> int:
        return len(self.measured) + len(self.failed)

    @property
    def worst(self) -> list[float]:
        """The objectives of a point that has none: infinitely bad, which every sweeper can rank."""
        return [-math.inf if higher else math.inf for higher in self.higher]

    def name_of(self, point: Point) -> str:
        """`point bits=int2 seed=1`: a point by the words that tell it from others."""
        words = [word for word in point if key_of(word) in self.keys]
        return f"point {' '.join(words or [word for word in point if not is_of_hydra(word)])}".rstrip()

    def place(self) -> str:
        """`3/8`, or `3` where nobody knows how many there will be."""
        return f"{self.num_started}/{self.total}" if self.total else str(self.num_started)

    def outlook(self) -> str:
        """The points that are left and their time, at the pace so far."""
        if self.is_forecast or not self.total or self.num_ended >= self.total or not self.measured:
            return ""
        seconds = (time.monotonic() - self.started) / self.num_ended * (self.total - self.num_ended)
        return f", {self.num_ended} of {self.total} points have ended, about {_duration(seconds)} left"

    def in_words(self, values: Sequence[float]) -> str:
        return ", ".join(f"{goal} {value:.6g}" for goal, value in zip(self.goals, values, strict=True))

    def best(self) -> str | None:
        """The best point of a multirun with one objective; None with none or several."""
        if len(self.goals) != 1 or not self.measured:
            return None
        point, values = min(self.measured, key=lambda one: -one[1][0] if self.higher[0] else one[1][0])
        return f"best: {self.in_words(values)} at {self.name_of(point).removeprefix('point ')}"

    def interrupted(self) -> str:
        """The sentence about a multirun that Ctrl-C ends."""
        if not self.total:
            return f"{self.num_ended} points have ended{self.jobs}"
        return f"{self.num_ended} of {self.total} points have ended, {self.total - self.num_ended} are left{self.jobs}"

    def error(self) -> UserError | None:
        """The last word on a multirun some of whose points were refused or failed."""
        if not self.failed or (self.is_drawn and self.measured and all(status_of(one) > 1 for _, one in self.failed)):
            return None
        reasons = self._reasons(self.failed)
        more = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        number = f"{len(self.failed)} of {max(self.total or 0, self.num_ended)} points"
        if all(status_of(error) > 1 for _, error in self.failed):
            return UserError(f"{number} were refused ({'; '.join(reasons[:NAMED])}{more})")
        refused = any(status_of(error) > 1 for _, error in self.failed)
        kind = UserError if refused else FailedCellsError
        how = "were refused or failed" if refused else "failed"
        return kind(f"{number} {how} ({'; '.join(reasons[:NAMED])}{more}); the same command tries them again")


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
