"""SLURM's queue, asked directly: squeue, sacct and scancel, each with a limit on how long it may take.

submitit is not asked: it knows a job's state from accounting only, and waits for ever on a cluster without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard, assert_never

from matquant.config.setup import ClusterSpec, DebugCluster, LocalCluster, SlurmCluster
from matquant.errors import UserError

TIMEOUT_S = 60
AT_ONCE = 500  # job ids on one command line


@dataclass(frozen=True)
class QueuedJob:
    """A job, or one element of an array, that SLURM has not finished with."""

    job_id: str
    name: str
    state: str
    reason: str

    @property
    def is_waiting(self) -> bool:
        """True for a job that is not running: pending, or requeued and not started again."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")

    @property
    def can_run(self) -> bool:
        """False for a job that waits for another one that has failed."""
        return self.reason != "DependencyNeverSatisfied"


def is_slurm(cluster: ClusterSpec) -> TypeGuard[SlurmCluster]:
    """True if jobs go to SLURM; False if they run on this machine, where the launcher stays and starts them."""
    match cluster:
        case SlurmCluster():
            return True
        case LocalCluster() | DebugCluster():
            return False
        case _:
            assert_never(cluster)


def require_slurm() -> None:
    """Refuses a machine that is not part of a SLURM cluster."""
    if absent := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
        raise UserError(
            f"{', '.join(absent)} cannot be found; run this where SLURM's commands are (a login node), "
            "or use cluster=local"
        )


def jobs_in_queue() -> dict[str, QueuedJob]:
    """The user's jobs by id, the elements of an array one by one; UserError if SLURM does not answer."""
    lines = _ask(["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", "%i|%T|%r|%j"])
    jobs = [QueuedJob(job_id, name, state, reason) for job_id, state, reason, name in (x.split("|", 3) for x in lines)]
    return {job.job_id: job for job in jobs}


def how_jobs_ended(job_ids: Iterable[str]) -> Mapping[str, str]:
    """SLURM's word for how jobs ended (COMPLETED, FAILED, OUT_OF_MEMORY, TIMEOUT, CANCELLED, NODE_FAIL).

    It comes from accounting; empty if a cluster has none.
    """
    ended: dict[str, str] = {}
    for ids in _portions(sorted(job_ids)):
        command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format", "JobID,State"]
        try:
            lines = _ask([*command, "--jobs", ",".join(ids)])
        except UserError:
            return ended
        ended |= {job_id: state.split()[0] for job_id, state in (line.split("|") for line in lines) if state}
    return ended


def number_of(name: str) -> str | None:
    """SLURM's number of the job, or of the array, of a name that only one has; None if it has none of that name."""
    numbers = _ask(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F"])
    return numbers[0].strip() if numbers else None


def cancel(job_ids: Iterable[str]) -> None:
    """Cancels jobs, waiting or running."""
    for ids in _portions(sorted(job_ids)):
        _ask(["scancel", *ids])


def _portions(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))


def _ask(command: Sequence[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} cannot be found; run this where SLURM's commands are (a login node)") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{command[0]} has not answered for {TIMEOUT_S} s: SLURM's controller is down or busy; try again later"
        ) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(
            f"{command[0]} failed ({said}); run this where SLURM answers (a login node), or use cluster=local"
        )
    return [line for line in done.stdout.splitlines() if line.strip()]
