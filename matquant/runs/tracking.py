"""Experiment tracking: one run per cell, of Weights & Biases or of trackio, or nothing.

Tracking is never allowed to stop or delay a run: what fails in it is said once, and the run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, assert_never, runtime_checkable

from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.runs.tracked.artifacts import Artifact
from matquant.runs.tracked.labels import JobType
from matquant.runs.tracked.limits import one_line
from matquant.runs.trackio_run import TrackioTracker
from matquant.runs.wandb_run import WandbTracker

log = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """The receiver of the curves, final numbers and files of one cell."""

    def log(self, metrics: Mapping[str, Any]) -> None: ...

    def summarize(self, metrics: Mapping[str, Any]) -> None: ...

    def keep(self, artifact: Artifact) -> None: ...

    def finish(self) -> None: ...


class NoTracker:
    """The tracker of `tracking=none`, which keeps nothing."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        pass

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        pass

    def keep(self, artifact: Artifact) -> None:
        pass

    def finish(self) -> None:
        pass


class KeepingTracker(Tracker, Protocol):
    """A tracker that also writes to disk what it receives."""

    title: str
    """Its name in sentences."""
    upload: str
    """The command that uploads it from there; empty if there is none."""


class Guarded:
    """A tracker that cannot harm a run: the first Exception of the one inside ends it, with one sentence.

    What asks the process itself to stop, such as Ctrl-C, is no Exception and passes.
    """

    def __init__(self, cell_id: str, title: str, open_tracker: Callable[[], KeepingTracker]) -> None:
        self._cell_id = cell_id
        self.inside: KeepingTracker | None = None
        try:
            self.inside = open_tracker()
        except Exception as error:  # of any kind: a tracker never costs a run
            log.warning(
                "%s is not tracked (%s); the run goes on, and tracking=none leaves %s out",
                *(cell_id, one_line(error), title),
            )

    def log(self, metrics: Mapping[str, Any]) -> None:
        self._call(lambda tracker: tracker.log(metrics))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        self._call(lambda tracker: tracker.summarize(metrics))

    def keep(self, artifact: Artifact) -> None:
        self._call(lambda tracker: tracker.keep(artifact))

    def finish(self) -> None:
        self._call(lambda tracker: tracker.finish())
        self.inside = None

    def _call(self, do: Callable[[KeepingTracker], None]) -> None:
        tracker = self.inside
        if tracker is None:
            return
        try:
            do(tracker)
        except Exception as error:  # of any kind: a tracker never costs a run
            self.inside = None
            remedy = f"; upload what was tracked until then with `{tracker.upload}`" if tracker.upload else ""
            log.warning("%s failed (%s): %s goes on untracked%s", tracker.title, one_line(error), self._cell_id, remedy)
            if not isinstance(error, TimeoutError):  # it answers, so that its files can be completed
                with suppress(Exception):
                    tracker.finish()


@contextmanager
def tracking(cell: Cell, setup: Setup, job_type: JobType) -> Iterator[Tracker]:
    """A cell's tracker for as long as a stage runs; it is finished in any case."""
    tracker = _tracker_for(cell, setup, job_type)
    try:
        yield tracker
    finally:
        tracker.finish()


def _tracker_for(cell: Cell, setup: Setup, job_type: JobType) -> Tracker:
    match setup.tracking.kind:
        case "wandb":
            return Guarded(cell.id, WandbTracker.title, lambda: WandbTracker(cell, setup, job_type))
        case "trackio":
            return Guarded(cell.id, TrackioTracker.title, lambda: TrackioTracker(cell, setup, job_type))
        case "none":
            return NoTracker()
        case _:
            assert_never(setup.tracking.kind)
