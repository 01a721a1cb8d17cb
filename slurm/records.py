"""The record of what was submitted: one small file for each stage of a cell, written by the launcher.

It is written before the job is submitted and completed afterwards, so that a launcher that dies between the two leaves
a name by which the job can be found.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matquant.runs.files import write_json
from matquant.runs.processes import is_hidden, process_started, user_name
from matquant.runs.status import SILENT_S
from slurm.states.known import Identity


@dataclass(frozen=True)
class Submission:
    """A job of a launch.

    `job_id` is SLURM's, and `index` the job's place in its array; `pid` and `launcher` are processes of `host`.
    """

    launch: str
    cluster: str
    name: str
    index: int | None = None
    job_id: str | None = None
    log: str | None = None
    host: str | None = None
    pid: int | None = None
    process_started: float | None = None
    launcher: int | None = None
    launcher_started: float | None = None
    submitted: float = 0.0
    user: str | None = None
    slurm_cluster: str | None = None
    ended: tuple[str, ...] = ()
    """The ways in which earlier jobs of this stage have ended, oldest first."""

    @property
    def identity(self) -> Identity | None:
        """The job of SLURM's; None for a process of a machine."""
        if self.cluster != "slurm":
            return None
        return Identity(self.job_id, self.name, self.user, self.slurm_cluster, self.index)

    @property
    def is_mine(self) -> bool:
        return self.user in (None, user_name())

    def with_job(self, job_id: str, log: Path) -> Submission:
        """The submission with the number that SLURM has given it."""
        return replace(self, job_id=job_id, log=str(log))

    def with_process(self, pid: int, log: Path) -> Submission:
        """The submission with the process of this machine that works on it."""
        launcher = os.getpid()
        return replace(
            self,
            host=socket.gethostname(),
            pid=pid,
            process_started=process_started(pid),
            launcher=launcher,
            launcher_started=process_started(launcher),
            log=str(log),
        )

    def process_is_alive(self) -> bool:
        """True if its process still runs on this machine."""
        if self.pid is None or self.host != socket.gethostname():
            return False
        if (started := process_started(self.pid)) is not None:
            return started == self.process_started
        return not self.is_mine and is_hidden(self.pid)

    def may_be_starting(self) -> bool:
        """True for a process of another machine that was started lately, and may not have reported yet."""
        if self.pid is None or self.host == socket.gethostname():
            return False
        return time.time() - self.submitted < SILENT_S

    def living_launcher(self) -> int | None:
        """The process that started this one and waits for it; None if it has ended."""
        if self.launcher is None or self.host != socket.gethostname():
            return None
        return self.launcher if process_started(self.launcher) == self.launcher_started is not None else None


def new_launch(experiment: str) -> str:
    """A name for a launch that no other has: experiment, time and process."""
    return f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def write_submission(path: Path, submission: Submission) -> None:
    """Writes the record of a job of this user's."""
    at, user = submission.submitted or time.time(), submission.user or user_name()
    write_json(path, asdict(replace(submission, submitted=at, user=user)))


def read_submission(path: Path) -> Submission | None:
    """The submission in a file; None if there is no file, or no submission in it."""
    try:
        told = json.loads(path.read_text())
        return Submission(**{**told, "ended": tuple(told.get("ended", ()))})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
