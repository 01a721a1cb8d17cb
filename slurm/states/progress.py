"""The state of a stage that is not done: it follows from its record, its last report, and its job.

What lives is never called dead: a process of this machine is looked for, one elsewhere is alive while it reports or
while SLURM runs its job.
"""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, assert_never

from evaluation.board import duration
from matquant.runs.folder import RunDir
from matquant.runs.processes import user_name
from matquant.runs.status import Reason, Status
from slurm.records import Submission
from slurm.states.endings import Ending, ending_of
from slurm.states.item import Item, ItemState
from slurm.states.known import Identity, Known, QueuedJob
from slurm.states.reasons import obstacle, why_it_waits

FORGOTTEN_S = 300.0
"""A job that SLURM has forgotten is dead if it has not reported for so long; MinJobAge is this by default."""


class UnderWay(NamedTuple):
    """The state of an item that is at work, or has a job that waits."""

    state: ItemState
    note: str
    job: QueuedJob | None = None
    owner: str | None = None
    status: Status | None = None
    reason: Reason | None = None
    remedy: str = ""


def observed(item: Item, run: RunDir, known: Known) -> Item:
    """The item with its state; of one that is done, whose output is on disk, nothing else is looked at."""
    if item.state == "done":
        return item
    submission, status = item.submission, item.status
    if (found := under_way(submission, status, known)) is not None:
        return replace(item, **found._asdict())
    identity = None if submission is None else submission.identity
    job = known.find(identity)
    has_reported = submission is None or (_has_reported(submission, status) and not _is_outlived(status, job))
    if submission is not None and not has_reported:
        ending = ending_of(run, submission, job, reported=False)
        if ending is None:
            return replace(item, note="never started: cancelled, or its training failed")
        return _failed(item, run, ending)
    if status is None:
        return item
    match status.state:
        case "running":
            own = (
                job
                if submission is not None and status.launch == submission.launch
                else known.find(identity_of(status))
            )
            ending = ending_of(run, submission, own, reported=True)
            assert ending is not None
            return _failed(item, run, ending)
        case "failed":
            return replace(item, state="failed", reason=status.reason, note=status.message or "")
        case "stopped":
            return replace(item, state="failed", reason="interrupted", note=status.message or "")
        case "done":  # but its output is missing: deleted, or other results are asked for now
            return item
        case _:
            assert_never(status.state)


def under_way(submission: Submission | None, status: Status | None, known: Known) -> UnderWay | None:
    """The state of an item that is running or queued, or whose job cannot start; None for any other item."""
    identity = None if submission is None else submission.identity
    job = known.find(identity)
    if submission is not None and job is not None and not job.has_ended:
        return _by_job(job, status if _is_of_this_start(status, submission, job) else None, known)
    if status is not None and (found := _by_report(submission, status, known)) is not None:
        return found
    if submission is None:
        return None
    reported = _has_reported(submission, status)
    if submission.process_is_alive() or (submission.may_be_starting() and not reported):
        note = f"process {submission.pid}{_of(submission.user)} on {submission.host} is starting"
        return UnderWay("running", note, owner=_other(submission.user))
    if known.hides(identity) and not (reported and status is not None and status.state in ("failed", "done")):
        note = f"job {submission.job_id}{_of(submission.user)}: SLURM shows it to nobody else; ask whether it has ended"
        return UnderWay("queued", note, owner=_other(submission.user))
    return None


def identity_of(status: Status) -> Identity | None:
    """The job that a process has reported from; None if it is not known well enough to be told from another one."""
    if status.slurm_job is None or status.slurm_name is None:
        return None
    return Identity(status.slurm_job, status.slurm_name, status.user, status.slurm_cluster)


def needs_slurm(submission: Submission | None, status: Status | None) -> bool:
    """True if only SLURM can tell whether a submitted job is at work."""
    if submission is None or submission.identity is None:
        return False
    if status is None or status.launch != submission.launch:
        return not (status is not None and status.state == "running" and status.is_alive())
    return status.state == "stopped" or (status.state == "running" and not status.is_alive())


def identities(submission: Submission | None, status: Status | None) -> list[Identity]:
    """The jobs of SLURM's that may be at work on an item."""
    recorded = None if submission is None else submission.identity
    mine = status is not None and submission is not None and status.launch == submission.launch
    reported = identity_of(status) if status is not None and status.state in ("running", "stopped") else None
    return [one for one in (recorded, None if mine and recorded else reported) if one is not None]


def _by_job(job: QueuedJob, status: Status | None, known: Known) -> UnderWay:
    """The state of an item by its job that has not ended."""
    whose, owner = f"job {job.job_id}{_of(job.user)}", _other(job.user)
    if not job.is_waiting:
        return UnderWay("running", whose, job, owner, status)
    if not job.can_run:
        return UnderWay("missing", "its job waits for one that has failed", job, owner)
    if (found := obstacle(job, known)) is not None:
        note = f"{whose}: {found.words} (SLURM says {job.reason})"
        return UnderWay("failed", note, job, owner, None, found.reason, found.remedy)
    return UnderWay("queued", why_it_waits(job) + (f", {whose}" if owner else ""), job, owner)


def _by_report(submission: Submission | None, status: Status, known: Known) -> UnderWay | None:
    """The state of an item by the last report of a process, whose own job may be known."""
    launched = submission is not None and status.launch == submission.launch and submission.identity is not None
    identity = submission.identity if launched and submission is not None else identity_of(status)
    job = known.find(identity)
    if status.state not in ("running", "stopped"):
        return None
    if job is not None and not job.has_ended and (job.is_waiting or _has_started_since(job, status)):
        # SLURM has put it back into its queue.  An allocation that no launch asked for is not ours to cancel.
        return _by_job(job, None, known)._replace(job=job if launched else None)
    if status.state == "stopped":
        return None
    note = f"process {status.pid}{_of(status.user)} on {status.host}"
    if _is_alive(status, identity, job, known):
        return UnderWay("running", note, None, _other(status.user), status)
    if job is not None and not job.has_ended and status.host != socket.gethostname():
        silent = duration(time.time() - status.at)
        return UnderWay(
            "running", f"{note}, silent for {silent} while its job {job.job_id} runs", None, _other(job.user), status
        )
    return None


def _is_alive(status: Status, identity: Identity | None, job: QueuedJob | None, known: Known) -> bool:
    """True if a process lives: here it is looked for, elsewhere it counts that it reports and that its job goes on."""
    if status.host == socket.gethostname():
        return status.is_alive()
    if job is not None and job.has_ended:
        return False
    return status.is_fresh(FORGOTTEN_S) if known.has_forgotten(identity) else status.is_fresh()


def _is_of_this_start(status: Status | None, submission: Submission, job: QueuedJob) -> bool:
    """True for a report of the process that is at work now, and not of one before it."""
    if status is None or status.state != "running" or status.launch != submission.launch:
        return False
    return not _has_started_since(job, status)


def _has_started_since(job: QueuedJob, status: Status) -> bool:
    return not job.is_waiting and job.started is not None and job.started > status.at


def _has_reported(submission: Submission, status: Status | None) -> bool:
    """True if a status is that of a submitted job, or of something that ran after it."""
    return status is not None and (status.launch == submission.launch or status.started > submission.submitted)


def _is_outlived(status: Status | None, job: QueuedJob | None) -> bool:
    """True for the last report of a job that SLURM has started again since, and that has ended without another."""
    return status is not None and job is not None and job.has_ended and _has_started_since(job, status)


def _failed(item: Item, run: RunDir, ending: Ending) -> Item:
    way = f"{ending.reason}: {ending.way or _saved(item, run)}"
    return replace(item, state="failed", reason=ending.reason, note=ending.note, way=way)


def _saved(item: Item, run: RunDir) -> str:
    """The state of a stage's work: the same again if nothing was saved in between."""
    files = [path for folder in (run.state, run.searches, run.plans) for path in folder.rglob("*")]
    latest = max(map(_written, files), default=0.0)
    return f"{len(files)} files, latest {latest}; {item.num_results} results and {len(item.plans)} plans missing"


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # just replaced
        return 0.0


def _other(user: str | None) -> str | None:
    """The user, if it is not the one who asks."""
    return None if user in (None, user_name()) else user


def _of(user: str | None) -> str:
    return f" of {other}" if (other := _other(user)) else ""
