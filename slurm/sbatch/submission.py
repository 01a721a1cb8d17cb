"""One call of sbatch for an array of jobs, or one job: its script, its answer, and a look at the queue without one.

submitit writes the script and reads the pickled jobs on the other side.  Its own call is not used: it raises the same
error for a queue that is full and for jobs that were accepted.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from matquant.errors import UserError
from slurm import queue
from slurm.jobs import Job
from slurm.sbatch.refusals import RETRYING, Kind, in_words, kind_of

PATIENCE_S = 300.0
LOOKS, BETWEEN_S = 5, 3.0
"""How often the queue is looked at for jobs that sbatch did not answer about, and the seconds between two looks."""


class RefusedError(Exception):
    """An answer of sbatch that is no number, in SLURM's words."""

    def __init__(self, kind: Kind, words: str) -> None:
        super().__init__(words)
        self.kind, self.words = kind, words


@dataclass(frozen=True)
class Script:
    """Jobs of one shape, on their way to one sbatch."""

    folder: Path
    name: str
    parameters: Mapping[str, Any]
    max_requeues: int
    jobs: Sequence[Job]

    def submit(self, environment: Mapping[str, str], cluster: str | None) -> list[str]:
        """The numbers of the jobs; RefusedError if there are none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pickles = [self.folder / f"{self.name}-{index}.pkl" for index in range(len(self.jobs))]
        for path, job in zip(pickles, self.jobs, strict=True):
            delayed = DelayedSubmission(job)
            delayed.set_timeout(self.parameters["time"], self.max_requeues)
            delayed.dump(path)
        script = self.folder / f"{self.name}.sh"
        script.write_text(self._text())
        try:
            number = ask_sbatch(script, self.name, environment, cluster)
        except RefusedError as refusal:
            if refusal.kind != "silent":  # else they may still come
                for path in (*pickles, script):
                    path.unlink()
            raise
        return [number] if len(self.jobs) == 1 else [f"{number}_{index}" for index in range(len(self.jobs))]

    def _text(self) -> str:
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=self.max_requeues)
        # Each job takes its pickle by itself, to where submitit looks for it: also one whose number we never learn.
        mine = shlex.quote(str(self.folder / self.name))
        number = "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
        place = f'{shlex.quote(str(self.folder))}/"${{number:-$SLURM_JOB_ID}}"_submitted.pkl'
        take = [
            f'number="{number}"',
            f'[ -e {place} ] || mv {mine}-"${{SLURM_ARRAY_TASK_ID:-0}}".pkl {place}',
        ]
        executor.update_parameters(**{**self.parameters, "setup": [*take, *self.parameters["setup"]]})
        if len(self.jobs) > 1:
            executor.parameters["map_count"] = len(self.jobs)
        return executor._make_submission_file_text(executor._submitit_command_str, "")


def ask_sbatch(script: Path, name: str, environment: Mapping[str, str], cluster: str | None) -> str:
    """The number that SLURM gives to a script; RefusedError if it takes no jobs now."""
    said = _call(["sbatch", str(script)], environment)
    if (number := re.findall(r"(?:Submitted batch job|job) (\d+)", said.stdout)) and said.returncode == 0:
        return number[-1]
    words, kind = in_words(said.stderr or said.stdout), kind_of(said.stderr)
    was_stopped = RETRYING.search(said.stderr) is not None
    if kind == "silent" or was_stopped or said.returncode <= 0:
        if (found := _found(name, cluster, looks=1 if was_stopped else LOOKS)) is not None:
            return found
        kind = "full" if was_stopped else "silent"
    raise RefusedError(kind, words)


def _call(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs sbatch; one that finds the queue full and would ask for two minutes is stopped after its first try."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=dict(environment), **streams) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        timer = Timer(PATIENCE_S, process.kill)
        timer.start()
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if RETRYING.search(line):
                    process.terminate()
            answer = process.stdout.read()
        finally:
            timer.cancel()
        return subprocess.CompletedProcess(command, process.wait(), answer, "".join(lines))


def _found(name: str, cluster: str | None, *, looks: int) -> str | None:
    """The number of the jobs of a name, which no others have: SLURM may have taken them, and its answer was lost."""
    for look in range(looks):
        if look:
            time.sleep(BETWEEN_S)
        with suppress(UserError):  # squeue is not answered either
            if (number := queue.number_of(name, cluster)) is not None:
                return number
    return None
