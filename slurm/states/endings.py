"""The end of a job that left no status: its reason, from SLURM's word for it and from its log."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matquant.runs.folder import RunDir
from matquant.runs.status import Reason
from slurm.records import Submission
from slurm.states.known import QueuedJob
from slurm.states.reasons import ENDINGS

NO_ROOM = 1_000_000  # bytes
START = "matquant: the script of the job starts"
"""The first line of every start of a job in its log."""
STATUS = "matquant: the script of the job ended with status"
SCRIPT = (f"echo {START!r}", f"trap 'echo \"{STATUS} $?\"' EXIT")
"""The lines of a job's script that tell, in its log, of its start and its end."""
STARTED = "submitit INFO"
"""The beginning of the lines that are in a log as soon as Python runs."""
_CRASHES = "Aborted|Segmentation fault|Bus error|Illegal instruction|Floating[- ]point exception"
_SIGNALS = {132: "Illegal instruction", 134: "Aborted", 135: "Bus error", 136: "Floating point exception"}
_SIGNALS |= {139: "Segmentation fault"}
_SAID: Mapping[Reason, re.Pattern[str]] = {
    # As slurmstepd and srun write it: a cell may be called bloom.
    "out of memory": re.compile(r"\boom[-_ ]?kill|\btask \S+: Out Of Memory", re.IGNORECASE),
    "time limit": re.compile(r"DUE TO TIME LIMIT|\btask \S+: User defined signal 2"),
    "preempted": re.compile(r"DUE TO PREEMPTION"),
    "node lost": re.compile(r"DUE TO NODE FAILURE"),
    "crashed": re.compile(rf"\btask \S+: ({_CRASHES})|Fatal Python error: ({_CRASHES})"),
    "cancelled": re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*"),
}


class Ending(NamedTuple):
    """A reason, one sentence, and the part of the sentence that is the same if it ends the same way again."""

    reason: Reason
    note: str
    way: str = ""


def ending_of(run: RunDir, submission: Submission | None, job: QueuedJob | None, *, reported: bool) -> Ending | None:
    """How a process ended that has not said so; None if there is no sign that it ever started.

    `reported` is True if it came as far as to report that it runs.
    """
    if reported and shutil.disk_usage(run.path).free < NO_ROOM:
        return Ending("disk full", "the process ended without a status, and the disk of the run folder is full")
    word = job.state if job is not None and job.has_ended else None
    told = f" (SLURM says {word}{_because(job)})" if word else ""
    log = Path(submission.log) if submission is not None and submission.log is not None else None
    has_log = log is not None and log.exists()
    if not has_log and not reported and word in (None, "CANCELLED", "REVOKED"):
        return None
    said = _latest(log) if log is not None and has_log else ""
    if word is not None and word in ENDINGS:
        return Ending(ENDINGS[word], _SENTENCES.get(ENDINGS[word], "the process ended without a status") + told)
    if (by_log := _by_log(said)) is not None:
        return by_log._replace(note=by_log.note + told)
    if reported:
        return Ending("killed", f"the process ended without a status (killed?){told}")
    if STARTED in said or _is_local(submission):
        return _before_its_first_report(said, told)
    return _before_python(said, told, word, submission if not has_log else None)


_SENTENCES: Mapping[Reason, str] = {
    "out of memory": "SLURM killed it for the memory it used (see the log)",
    "time limit": "it met its time limit before it could save and start again",
    "preempted": "it gave way to a job of higher priority",
    "node lost": "its node was lost",
    "cancelled": "it was cancelled",
}


def _because(job: QueuedJob | None) -> str:
    return f": {job.reason}" if job is not None and job.reason not in ("", "None") else ""


def _by_log(said: str) -> Ending | None:
    """The ending that SLURM, the shell or Python has noted in the log."""
    for reason, pattern in _SAID.items():
        if (found := pattern.search(said)) is None:
            continue
        if reason == "crashed":
            return _crash(next(group for group in found.groups() if group))
        return Ending(reason, _SENTENCES[reason])
    status = re.search(rf"{STATUS} (\d+)", said)
    return _crash(_SIGNALS[int(status[1])]) if status and int(status[1]) in _SIGNALS else None


def _crash(signal: str) -> Ending:
    way = signal[0] + signal[1:].lower().replace("-", " ")
    return Ending("crashed", f"a library ended the process: {way}", way)


def _before_its_first_report(said: str, told: str) -> Ending:
    """The ending of a job whose Python started, and that was still importing or loading."""
    lines = [line.strip() for line in said.splitlines() if _tells(line)]
    if any(line.startswith("Traceback") for line in lines):
        error = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)), lines[-1])
        return Ending("error", f"its process ended before it could say why: {error[:300]}{told}")
    if not lines or re.search(rf"\btask \S+: Killed|{STATUS} 137", said):
        return Ending("killed", f"the process ended without a status (killed?){told}")
    return Ending("error", f"its process ended before it could say why: read the log{told}")


def _before_python(said: str, told: str, word: str | None, unseen: Submission | None) -> Ending:
    """The ending of a job whose Python never started: the lines of cluster.setup, or the environment, ended it."""
    status = re.search(rf"{STATUS} (\d+)", said)
    lines = [line.strip() for line in said.splitlines() if _tells(line)]
    if not (lines or status or word):
        return Ending("killed", f"the process ended without a status (killed?){told}")
    if unseen is not None:
        return Ending(
            "setup failed", f"it ended without a log: can its node see {Path(unseen.log or '').parent}?{told}"
        )
    ended = f" with status {status[1]}" if status else ""
    last = f": {lines[-1][:300]}" if lines else ", and its log is empty"
    return Ending("setup failed", f"the job ended{ended} before Python started{last}{told}")


def _tells(line: str) -> bool:
    """True for a line of a log that was written by neither submitit nor this program's own script."""
    noise = ("submitit INFO", "matquant: the script", "srun: launch/slurm", "srun: Force Terminated")
    return bool(line.strip()) and not line.strip().startswith(noise) and "Exited with exit code" not in line


def _is_local(submission: Submission | None) -> bool:
    return submission is not None and submission.cluster != "slurm"


def _latest(log: Path) -> str:
    """The end of a log, as far as it is of the latest start of its job."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 1_000_000))
            return file.read().decode(errors="replace").rpartition(START)[2]
    except OSError:
        return ""
