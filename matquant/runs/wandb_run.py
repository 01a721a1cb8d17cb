"""A cell's Weights & Biases run: online where the server answers, files for `wandb sync` where it does not.

Nothing here waits for long: a server is asked once whether it answers, and every call to W&B has a time limit.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.runs.tracked.artifacts import Artifact, Role, roles
from matquant.runs.tracked.labels import COUNTERS, EFFECTIVE_BITS, READOUT, JobType, labels_of
from matquant.runs.tracked.limits import one_line, within
from matquant.runs.tracked.wandb_mode import Mode, wandb_mode

T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_ID = 64
"""The longest id of a run that W&B takes."""
PROBE_S, START_S, LOG_S, FINISH_S = 5, 20, 10, 30
"""Seconds that a server may take to answer, and W&B to start a run, to take numbers or files, and to upload."""
SILENT: set[str] = set()
"""Servers that let a run of this process wait at its end: the runs after it do not wait for them again."""


class WandbTracker:
    """One W&B run; its id is the cell's, so that a resumed cell goes on in the same run (`run_id`).

    An export has a run of its own: another process may be at work on the cell's.
    """

    title = "W&B"

    def __init__(self, cell: Cell, setup: Setup, job_type: JobType) -> None:
        mode = wandb_mode()  # first: W&B cannot be asked anything while WANDB_MODE is a word that it does not know
        folder = setup.paths.runs / cell.id
        folder.mkdir(parents=True, exist_ok=True)
        name, tags, config = labels_of(cell, setup, job_type)
        arguments: dict[str, Any] = {
            # A sweep has a project and an entity of its own, and W&B would warn of others.
            "project": None if is_of_a_sweep() else setup.tracking.project,
            "entity": None if is_of_a_sweep() else setup.tracking.entity,
            "id": run_id(cell.id if job_type != "export" else f"{cell.id}-export"),
            "name": name,
            "group": setup.experiment,
            "job_type": job_type,
            "tags": tags,
            "config": config,
            "dir": str(folder),
            # Offline too: `wandb sync` then continues the run, where it would otherwise write over the first file's.
            "resume": "allow",
            "reinit": "create_new",  # never the run of a cell before this one that could not be finished
            "settings": {
                "silent": True,
                "console": "off",
                "init_timeout": START_S,
                "finish_timeout": FINISH_S,
                "finish_timeout_raises": True,
            },
        }
        if mode in ("online", "shared"):
            self.run: Any = _online(mode, arguments, folder) or _started("offline", arguments)
        else:
            self.run = _started(mode, arguments)
        self.upload = _upload(self.run.settings)
        """The command that uploads what this run has written to disk; empty where W&B writes nothing."""
        self._kept: list[Artifact] = []
        self._upload_mb = setup.tracking.upload_mb
        is_curve = len(setup.readout.plans_of(cell)) > 1
        _in_time(LOG_S, lambda: self._define_metrics(is_curve=is_curve))

    def _define_metrics(self, *, is_curve: bool) -> None:
        """Read-outs are drawn against effective bits; a single one has no panel, nor what only places other numbers.

        A report draws it all the same, among those of other runs.
        """
        for name in (EFFECTIVE_BITS, *COUNTERS):
            self.run.define_metric(name, hidden=True, summary="none")
        # Without a summary: the last width that was read stands for no other.
        self.run.define_metric(f"{READOUT}*", step_metric=EFFECTIVE_BITS, hidden=not is_curve, summary="none")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Numbers as curves, a list of counts as a histogram over 0, 1, 2, ..., a list of rows as a table."""
        _in_time(LOG_S, lambda: self.run.log({name: _logged(value) for name, value in metrics.items()}))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        _in_time(LOG_S, lambda: self.run.summary.update({name: _logged(value) for name, value in metrics.items()}))

    def keep(self, artifact: Artifact) -> None:
        """Remembers files until the run finishes, where no cell waits for them any more."""
        self._kept.append(artifact)

    def finish(self) -> None:
        """Uploads the rest, and ends the process behind W&B, so that all files are whole and nothing waits for it."""
        try:
            self._log_kept()
            _in_time(FINISH_S + LOG_S, self.run.finish)
        except Exception:  # of any kind, W&B's and our own time limit among them; it goes on
            SILENT.add(self.run.settings.base_url)
            raise
        finally:
            _tear_down(LOG_S)

    def _log_kept(self) -> None:
        """Logs the files that were kept; those that W&B refuses cost a sentence, and none of the numbers."""
        kept, self._kept = self._kept, []
        try:
            _in_time(LOG_S, lambda: [self._log_artifact(one) for one in roles(kept)])
        except TimeoutError:
            raise
        except Exception as error:  # of any kind: files that have changed or are gone, a name of another type
            names = ", ".join(artifact.name for artifact in kept)
            log.warning("W&B does not take all files of %s (%s); the numbers are tracked", names, one_line(error))

    def _log_artifact(self, one: Role) -> None:
        """Hands over files as made by this run, as used by it, or both; the process behind W&B sends them.

        This is what W&B's `log_artifact` and `use_artifact` come to.  They themselves ask the server first, and wait
        for its answer; `use_artifact` refuses to work offline, too.
        """
        draft = _drafted(one.artifact, self._upload_mb)
        draft.finalize()
        roles = {"is_user_created": not one.is_made, "use_after_commit": one.is_used}
        self.run._interface.publish_artifact(self.run, draft, aliases=["latest"], **roles)


def _drafted(artifact: Artifact, upload_mb: float) -> Any:
    """W&B's form of an artifact: small files are uploaded from their places, large ones are named by theirs."""
    import wandb

    made = wandb.Artifact(artifact.name, artifact.kind, metadata=dict(artifact.facts))
    uploaded = artifact.uploaded(upload_mb)
    for name, path in artifact.files.items():
        if name in uploaded:
            made.add_file(str(path), name, skip_cache=True, policy="immutable")  # no copy in the home folder
        else:
            made.add_reference(path.absolute().as_uri(), name, checksum=False)  # which would read all of it
    return made


def _online(mode: Mode, arguments: Mapping[str, Any], folder: Path) -> Any:
    """The run of a server that answers and takes it; otherwise None, and a sentence says why."""
    if (reason := unreachable()) is None:
        try:
            return _started(mode, arguments)
        except Exception as error:  # W&B's own, those of its libraries, or our time limit
            reason = f"does not take the run ({one_line(error)})"
            # The process behind W&B keeps the id of a run that failed to start: "run ID ... is in use".
            _tear_down(LOG_S)
    log.warning(
        "W&B %s: tracking %s offline; upload it later with `wandb sync %s`",
        reason,
        arguments["id"],
        shlex.quote(str((folder / "wandb").absolute())),
    )
    return None


def _started(mode: Mode, arguments: Mapping[str, Any]) -> Any:
    import wandb

    return _in_time(START_S + LOG_S, lambda: wandb.init(mode=mode, **arguments))


def _upload(settings: Any) -> str:
    if settings.mode == "disabled":
        return ""
    folder = shlex.quote(str(Path(settings.files_dir).parent))
    return f"wandb sync {folder}" if settings.mode == "offline" else f"wandb sync --include-online {folder}"


def unreachable() -> str | None:
    """The reason why W&B's server does not answer, found in seconds; None if it does answer, whatever it says.

    A compute node often has a key and no network, where W&B itself would try for a minute and a half.
    """
    import wandb

    settings = wandb.setup().settings
    url = settings.base_url
    if url in SILENT:
        return f"at {url} fell silent during an earlier run"
    own = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = urllib.request.getproxies() | {scheme: proxy for scheme, proxy in own.items() if proxy}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    question = urllib.request.Request(
        f"{url}/graphql", b'{"query": "query { __typename }"}', {"Content-Type": "application/json"}
    )
    try:
        within(PROBE_S, lambda: opener.open(question, timeout=PROBE_S).close())
    except urllib.error.HTTPError as error:
        error.close()
        return f"at {url} answers with error {error.code}" if error.code >= 500 else None
    except Exception as error:  # of any kind: no name, no route, a proxy that refuses, a url that is none
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return None  # it answers; which certificates count is W&B's business
        return f"at {url} does not answer ({one_line(reason)})"
    return None


def _in_time(seconds: float, call: Callable[[], T]) -> T:
    try:
        return within(seconds, call)
    except TimeoutError:
        _tear_down(0)
        raise


def _tear_down(seconds: float) -> None:
    """Ends the process behind W&B; after some seconds it is left to itself, and ends with this process."""
    import wandb

    with suppress(Exception):
        within(seconds, wandb.teardown)


def is_of_a_sweep() -> bool:
    """True for a process that `wandb agent` has started: it tries one cell, in a run that the agent has named."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def run_id(cell_id: str) -> str:
    """The id of a cell's run: the cell's, which ends in a digest; a longer one than W&B takes is cut in front of it.

    A run of W&B's agent has the agent's: a sweep may try a cell twice, and each try is a run of its own.
    """
    if is_of_a_sweep():
        return os.environ["WANDB_RUN_ID"]
    if len(cell_id) <= MAX_ID:
        return cell_id
    digest = hashlib.sha256(cell_id.encode()).hexdigest()[:8]
    return f"{cell_id[: MAX_ID - len(digest) - 1]}-{digest}"


def _logged(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    import numpy as np
    import wandb

    if value and isinstance(value[0], Mapping):
        return wandb.Table(columns=list(value[0]), data=[list(row.values()) for row in value])
    return wandb.Histogram(np_histogram=(np.array(value), np.arange(len(value) + 1)))
