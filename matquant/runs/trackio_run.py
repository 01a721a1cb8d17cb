"""A cell's run in trackio: a database in a local folder, and the dashboard that `trackio show` opens on it.

Nothing here needs an account or a server.  TRACKIO_DIR names another folder than trackio's own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.errors import UserError
from matquant.runs.tracked.artifacts import Artifact, Role, roles
from matquant.runs.tracked.labels import JobType, labels_of
from matquant.runs.tracked.limits import within

T = TypeVar("T")
INSTALL = "pip install 'trackio>=0.43'"
START_S, LOG_S, FINISH_S = 20, 10, 40
"""Seconds that trackio may take to start a run, to take numbers, and to write the rest."""


def require_trackio() -> None:
    """Refuses a machine without trackio, which is no dependency of this program."""
    if find_spec("trackio") is None:
        raise UserError(f"tracking=trackio needs a package that is not installed; {INSTALL}, or set tracking=none")


def _trackio() -> Any:
    require_trackio()
    return import_module("trackio")  # by name, so that a checker of types does without it


class TrackioTracker:
    """One run of trackio; it goes on where an earlier process of the cell left it.

    trackio knows a run by its name, so that the name ends in the digest of the cell's id.
    """

    title, upload = "trackio", ""

    def __init__(self, cell: Cell, setup: Setup, job_type: JobType) -> None:
        trackio = _trackio()
        name, _, config = labels_of(cell, setup, job_type)
        self.run: Any = _quietly(
            START_S,
            lambda: trackio.init(
                setup.tracking.project,
                name=f"{name} · {cell.id.rpartition('-')[2]}",
                group=setup.experiment,
                config={**config, "job_type": job_type},
                resume="allow",
                embed=False,
            ),
        )
        self._summary: dict[str, Any] = {}
        self._kept: list[Artifact] = []
        self._upload_mb = setup.tracking.upload_mb

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Numbers as curves, a list of counts as a histogram over 0, 1, 2, ..., a list of rows as a table."""
        within(LOG_S, lambda: self.run.log({name: _logged(value) for name, value in metrics.items()}))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """Remembers final numbers until the run finishes: trackio has no place for them but a table."""
        self._summary |= {name: value for name, value in metrics.items() if not isinstance(value, list)}

    def keep(self, artifact: Artifact) -> None:
        """Remembers files until the run finishes, where no cell waits for them any more."""
        self._kept.append(artifact)

    def finish(self) -> None:
        if self._summary:
            self.log({"summary": [{"name": name, "value": value} for name, value in self._summary.items()]})
        kept, self._kept, self._summary = self._kept, [], {}
        try:
            within(LOG_S, lambda: [self._log_artifact(one) for one in roles(kept)])
        finally:
            _quietly(FINISH_S, self.run.finish)

    def _log_artifact(self, one: Role) -> None:
        """Logs files as made by this run, as used by it, or both."""
        name = one.artifact.name
        if not one.is_made and self._uses(name):
            return
        self.run.log_artifact(_drafted(one.artifact, self._upload_mb))
        if one.is_used:
            self.run.use_artifact(name)

    def _uses(self, name: str) -> bool:
        """Records the use of an artifact of an earlier run; False if there is none of this name."""
        try:
            self.run.use_artifact(name)
        except ValueError:
            return False
        return True


def _drafted(artifact: Artifact, upload_mb: float) -> Any:
    """trackio's form of an artifact: small files are copied, large ones are named by their places."""
    made = _trackio().Artifact(artifact.name, artifact.kind, metadata=dict(artifact.facts))
    uploaded = artifact.uploaded(upload_mb)
    for name, path in artifact.files.items():
        if name in uploaded:
            made.add_file(path, name)
        else:
            made.add_reference(path.absolute().as_uri(), name, checksum=False)  # which would read all of it
    return made


def _quietly(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call with a time limit, without the lines that trackio prints."""
    with redirect_stdout(io.StringIO()):
        return within(seconds, call)


def _logged(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    import numpy as np

    trackio = _trackio()
    if value and isinstance(value[0], Mapping):
        return trackio.Table(columns=list(value[0]), data=[list(row.values()) for row in value])
    return trackio.Histogram(np_histogram=(np.array(value), np.arange(len(value) + 1)))
