"""Jobs as SLURM knows them, and what a record has to share with one of them to be its record."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
)
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class QueuedJob:
    """A job, or one element of an array: as it is now, or as it has ended."""

    job_id: str
    name: str
    state: str
    reason: str = ""
    user: str | None = None
    cluster: str | None = None
    started: float | None = None
    """The time of its latest start, in seconds since 1970."""
    account: str | None = None
    qos: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def is_waiting(self) -> bool:
        """True for a job that is not running: pending, or requeued and not started again."""
        return self.state in WAITING

    @property
    def can_run(self) -> bool:
        """False for a job that waits for another one that has failed."""
        return self.reason != "DependencyNeverSatisfied"


@dataclass(frozen=True)
class Identity:
    """A job of SLURM as it was recorded.

    A number alone may be a stranger's: on another cluster, or after SLURM has begun to count anew.  None stands for
    what an older record does not tell, or for a number that was never noted.
    """

    job_id: str | None
    name: str
    user: str | None = None
    cluster: str | None = None
    index: int | None = None

    def is_of(self, job: QueuedJob) -> bool:
        """True if it is this job."""
        if self.job_id is None:
            suffix = "" if self.index is None else f"_{self.index}"
            same = job.job_id.endswith(suffix)
        else:
            same = job.job_id == self.job_id
        told = ((self.name, job.name), (self.user, job.user), (self.cluster, job.cluster))
        return same and all(mine is None or theirs is None or mine == theirs for mine, theirs in told)

    @property
    def array(self) -> str | None:
        """The number without the index: that of the whole array."""
        return None if self.job_id is None else self.job_id.partition("_")[0]


class Known:
    """The jobs of which SLURM has told, and those of which it does not tell everybody."""

    def __init__(
        self,
        jobs: Iterable[QueuedJob] = (),
        *,
        hides: Iterable[Identity] = (),
        asked: Iterable[Identity] = (),
        at_work: Iterable[QueuedJob] | None = None,
    ) -> None:
        """`at_work` are all jobs that run, or ran a moment ago; None if that is not known."""
        self.jobs, self._hides, self._asked = tuple(jobs), frozenset(hides), frozenset(asked)
        self._at_work = None if at_work is None else tuple(at_work)

    @cached_property
    def _by_id(self) -> dict[str, list[QueuedJob]]:
        return _grouped((job.job_id, job) for job in self.jobs)

    @cached_property
    def _by_name(self) -> dict[str, list[QueuedJob]]:
        return _grouped((job.name, job) for job in self.jobs)

    def find(self, identity: Identity | None) -> QueuedJob | None:
        """The job that was recorded so; by its name if the launcher died before it could note the number."""
        if identity is None:
            return None
        alike = (
            self._by_name.get(identity.name, ()) if identity.job_id is None else self._by_id.get(identity.job_id, ())
        )
        return next((job for job in alike if identity.is_of(job)), None)

    def hides(self, identity: Identity | None) -> bool:
        """True if SLURM would not tell of a job, as it is somebody else's."""
        return identity in self._hides

    def has_forgotten(self, identity: Identity | None) -> bool:
        """True if the cluster of a job was asked for it and knows of none: it ended some minutes ago, or never was."""
        if identity is None or identity.cluster is None or identity in self._hides:
            return False
        return identity in self._asked and self.find(identity) is None

    def may_get_room(self, job: QueuedJob) -> bool:
        """True if a job that waits at a limit of its user, account or QOS may start when another one has ended."""
        if self._at_work is None:
            return True
        return any(_share_a_limit(job, other) for other in self._at_work)


def _share_a_limit(job: QueuedJob, other: QueuedJob) -> bool:
    """True if another job counts towards the limit that a job waits at."""
    group = other.qos == job.qos if job.reason.startswith("QOS") else other.account == job.account
    return group or ("Grp" not in job.reason and other.user == job.user)


def _grouped(pairs: Iterable[tuple[str, QueuedJob]]) -> dict[str, list[QueuedJob]]:
    groups: dict[str, list[QueuedJob]] = {}
    for key, job in pairs:
        groups.setdefault(key, []).append(job)
    return groups


def elements(job_id: str) -> list[str]:
    """The numbers that SLURM's short form stands for: 7_[1-3,5%2] is 7_1, 7_2, 7_3, 7_5."""
    short = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job_id)
    if short is None:
        return [job_id]
    array, ranges = short.groups()
    found: list[str] = []
    for part in ranges.split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part).groups()  # pyright: ignore[reportOptionalMemberAccess]
        found += [f"{array}_{index}" for index in range(int(first), int(last or first) + 1, int(step or 1))]
    return found
