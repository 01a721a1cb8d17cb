"""The status of a stage of a cell: a small file that the working process keeps true and all others read.

A scheduler's own states are late and coarse: a job that was requeued, ran out of memory or met a NaN is FAILED there,
or is not there at all.  Here a state is one word, with a reason and one sentence.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from matquant.disk import is_full
from matquant.errors import UserError
from matquant.runs.processes import is_hidden, process_started, user_name
from matquant.runs.stopping import Stopped, interrupts_win

log = logging.getLogger(__name__)

State = Literal["running", "done", "failed", "stopped"]
Reason = Literal[
    "out of memory",
    "non-finite",
    "time limit",
    "killed",
    "crashed",
    "cancelled",
    "preempted",
    "node lost",
    "setup failed",
    "cannot start",
    "held",
    "bad input",
    "disk full",
    "interrupted",
    "error",
]
LAUNCH = "MATQUANT_LAUNCH"
"""The environment variable that tells a job which launch it belongs to."""
BEAT_S = 10.0
SILENT_S = 1800.0
"""A process on another machine that has not reported for so long counts as dead."""


@dataclass(frozen=True)
class Status:
    """The last report of a stage.  Times are seconds since 1970; `done` and `total` are in the stage's own unit."""

    state: State
    started: float
    at: float
    host: str
    pid: int
    process_started: float
    reason: Reason | None = None
    message: str | None = None
    launch: str | None = None
    user: str | None = None
    slurm_job: str | None = None
    """SLURM's number of the job, with its index in an array, where it is one."""
    slurm_name: str | None = None
    slurm_cluster: str | None = None
    """The job's name and cluster: a number alone may be that of somebody else's job."""
    first: int | None = None
    """The part of `total` that was done at this process's first report."""
    since: float | None = None
    """The time of the first report of what is counted now: that changes, from one plan's search to the next."""
    done: int = 0
    total: int = 0

    def is_alive(self) -> bool:
        """True if the process that wrote this still runs; on another machine, if it has reported lately."""
        if self.host != socket.gethostname():
            return self.is_fresh()
        if (started := process_started(self.pid)) is not None:
            return started == self.process_started
        return is_hidden(self.pid) and self.is_fresh()

    def is_fresh(self, silent_s: float = SILENT_S) -> bool:
        """True if the process has reported lately."""
        return time.time() - self.at < silent_s


def _slurm_job() -> tuple[str | None, str | None, str | None]:
    """The number, the name and the cluster of the SLURM job that this process is part of."""
    variables = os.environ.get
    array, index = variables("SLURM_ARRAY_JOB_ID"), variables("SLURM_ARRAY_TASK_ID")
    number = f"{array}_{index}" if array and index else variables("SLURM_JOB_ID")
    return number, variables("SLURM_JOB_NAME"), variables("SLURM_CLUSTER_NAME")


def read_status(path: Path) -> Status | None:
    """The status in a file; None if there is none, or none that is whole."""
    for _ in range(2):  # once more if it was just being written
        try:
            return Status(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            time.sleep(0.01)
    return None


@runtime_checkable
class Beat(Protocol):
    """Reports how many steps are done, of how many; `doing` names what is counted, if it is not the stage itself."""

    def __call__(self, done: int, total: int, doing: str | None = None) -> object: ...


def silent(done: int, total: int, doing: str | None = None) -> None:
    """The beat of a stage that nobody watches."""


class Reporter:
    """Writes the status of one running stage."""

    def __init__(self, path: Path) -> None:
        now, pid = time.time(), os.getpid()
        started = process_started(pid)
        assert started is not None
        self.path = path
        job, name, cluster = _slurm_job()
        self.status = Status(
            state="running",
            started=now,
            at=now,
            host=socket.gethostname(),
            pid=pid,
            process_started=started,
            launch=os.environ.get(LAUNCH),
            user=user_name(),
            slurm_job=job,
            slurm_name=name,
            slurm_cluster=cluster,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def beat(self, done: int, total: int, doing: str | None = None) -> None:
        """Reports that work goes on, at most every ten seconds; `doing` names what is counted, if not the stage."""
        if self.status.first is None or doing != self.status.message:
            self.status = replace(self.status, first=done, since=time.time(), message=doing)
        if time.time() - self.status.at >= BEAT_S:
            self._put(done=done, total=total)

    def end(self, state: State, reason: Reason | None = None, message: str | None = None) -> None:
        self._put(state=state, reason=reason, message=message)

    def _put(self, **changes: object) -> None:
        self.status = replace(self.status, at=time.time(), **changes)  # pyright: ignore[reportArgumentType]
        self._write()

    def _write(self) -> None:
        """Writes in place, padded to one size: on a full disk there is no room for a file beside it.

        In a folder of several people the file may be another's, who has left it: it is replaced.
        """
        text = json.dumps(asdict(self.status), indent=1)
        try:
            if self.path.exists() and not os.access(self.path, os.W_OK):
                self.path.unlink()
            with self.path.open("r+" if self.path.exists() else "w") as file:
                file.write(text.ljust(2000) + "\n")
                file.truncate()
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error)


@contextmanager
def reporting(path: Path) -> Iterator[Reporter]:
    """Keeps a status file true while a stage runs: running, then done, stopped, or failed with the reason."""
    reporter = Reporter(path)
    try:
        with interrupts_win():
            yield reporter
    except KeyboardInterrupt:
        reporter.end("stopped", "interrupted", "Ctrl-C; the same command continues")
        raise
    except Stopped as stopped:
        reporter.end("stopped", "interrupted", str(stopped))
        raise
    except SystemExit:  # requeued without having reached a safe point
        reporter.end("stopped", "interrupted", "stopped with the state that was saved last")
        raise
    except BaseException as error:
        reporter.end("failed", reason_of(error), words_of(error))
        raise
    reporter.end("done")


def words_of(error: BaseException) -> str:
    """An error in one line, with what was being done when it came."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    text = " ".join(f"{kind}{error}{notes}".split())
    if isinstance(error, BaseExceptionGroup):
        text += ": " + "; ".join(words_of(member) for member in error.exceptions)
    return text if len(text) <= 1000 else text[:999] + "…"


def reason_of(error: BaseException) -> Reason:
    """The kind of a failure, which decides what a user can do about it."""
    if isinstance(error, BaseExceptionGroup):
        return reason_of(error.exceptions[0])
    if is_full(error):
        return "disk full"
    if isinstance(error, FloatingPointError):
        return "non-finite"
    if isinstance(error, UserError):
        return "bad input"
    if _is_out_of_memory(error):
        return "out of memory"
    return reason_of(error.__cause__) if error.__cause__ is not None else "error"


def _is_out_of_memory(error: BaseException) -> bool:
    # By name, since torch takes seconds to import: torch.OutOfMemoryError, and what its CPU allocator raises.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )
