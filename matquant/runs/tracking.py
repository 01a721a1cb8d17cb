"""Experiment tracking: one Weights & Biases run per cell, or nothing.

Tracking is never allowed to stop or delay a run: without a key it writes offline files, which `wandb sync` uploads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never, cast, get_args, runtime_checkable

from matquant.config.cell import Cell
from matquant.config.setup import Setup

log = logging.getLogger(__name__)
JobType = Literal["train", "evaluate", "cell"]
"""The work of one process for a cell: a stage of it, or all."""
Mode = Literal["online", "offline", "disabled", "shared"]


@runtime_checkable
class Tracker(Protocol):
    """The receiver of the curves and final numbers of one cell."""

    def log(self, metrics: Mapping[str, Any]) -> None: ...

    def summarize(self, metrics: Mapping[str, Any]) -> None: ...

    def finish(self) -> None: ...


class NoTracker:
    """The tracker of `tracking=none`, which keeps nothing."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        pass

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        pass

    def finish(self) -> None:
        pass


class WandbTracker:
    """One W&B run; its id is the cell's, so that a resumed cell goes on in the same run."""

    def __init__(self, cell: Cell, setup: Setup, job_type: JobType) -> None:
        import wandb

        folder = setup.paths.runs / cell.id
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", init_timeout=30, x_disable_stats=True)
        arguments: dict[str, Any] = {
            "project": setup.tracking.project,
            "entity": setup.tracking.entity,
            "id": cell.id,
            "name": cell.id,
            "group": setup.experiment,
            "job_type": job_type,
            "config": cell.model_dump(mode="json"),
            "dir": str(folder),
            "resume": "allow",
            "settings": settings,
        }
        try:
            self.run = wandb.init(mode=wandb_mode(), **arguments)
        except wandb.Error as error:
            log.warning("W&B cannot be reached (%s): tracking offline, upload later with `wandb sync`", error)
            self.run = wandb.init(mode="offline", **{key: value for key, value in arguments.items() if key != "resume"})

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Numbers as curves, a list of counts as a histogram over 0, 1, 2, ..., a list of rows as a table."""
        self.run.log({name: _logged(value) for name, value in metrics.items()})

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(metrics))

    def finish(self) -> None:
        self.run.finish()


def _logged(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    import numpy as np
    import wandb

    if value and isinstance(value[0], Mapping):
        return wandb.Table(columns=list(value[0]), data=[list(row.values()) for row in value])
    return wandb.Histogram(np_histogram=(np.array(value), np.arange(len(value) + 1)))


def wandb_mode() -> Mode:
    """`online` with a key, `offline` without; WANDB_MODE has the last word."""
    if (mode := os.environ.get("WANDB_MODE")) in get_args(Mode):
        return cast("Mode", mode)
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    has_key = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "api.wandb.ai" in netrc.read_text())
    return "online" if has_key else "offline"


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
            return WandbTracker(cell, setup, job_type)
        case "none":
            return NoTracker()
        case _:
            assert_never(setup.tracking.kind)
