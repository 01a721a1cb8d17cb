"""Submits jobs to SLURM: an array for each stage; each element waits for the stage before it of its own cell.

Every job is recorded before it is submitted and completed with its number afterwards; the records of refused jobs are
removed.  Jobs for which SLURM has no place now are left, to be submitted later.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from submitit.core.utils import JobPaths
from tqdm import tqdm

from evaluation.stages import SEARCH, Kind
from matquant.config.setup import SlurmCluster
from matquant.errors import UserError
from matquant.runs.folder import RunDir
from matquant.runs.status import LAUNCH
from slurm import queue, snapshot
from slurm.estimate import ranks_of
from slurm.jobs import Job
from slurm.plan import KINDS, Item, Sweep
from slurm.records import Submission, new_launch, read_submission, write_submission
from slurm.sbatch.environment import carried, environment_of_sbatch
from slurm.sbatch.limits import max_array_size
from slurm.sbatch.parameters import CPUS, sbatch_parameters
from slurm.sbatch.refusals import keys_of
from slurm.sbatch.submission import RefusedError, Script
from slurm.states import endings


@dataclass(frozen=True)
class Batch:
    """Jobs that are submitted together: of one shape, and each waiting for nothing, or for the stage before it."""

    items: tuple[Item, ...]
    jobs: tuple[Job, ...]
    dependency: str | None = None

    def portions(self) -> Iterator[Batch]:
        """The batch in two halves; one that follows an array element by element, in single jobs."""
        if self.dependency is None:
            half = len(self.items) // 2
            yield replace(self, items=self.items[:half], jobs=self.jobs[:half])
            yield replace(self, items=self.items[half:], jobs=self.jobs[half:])
            return
        array = self.dependency.partition(":")[2]
        for index, (item, job) in enumerate(zip(self.items, self.jobs, strict=True)):
            yield Batch((item,), (job,), f"afterok:{array}_{index}")


class Place(NamedTuple):
    """The array, or the job if it has but one element, that does the latest stage of some cells."""

    array: str
    cell_ids: tuple[str, ...]


class Outcome(NamedTuple):
    """The number of jobs that SLURM has taken, the items it has no place for now, and its words about that."""

    number: int
    left: tuple[Item, ...] = ()
    words: str = ""


class Launch:
    """One launch: its snapshot of the code, its folder of logs, and the jobs submitted so far."""

    def __init__(self, sweep: Sweep, code: Path) -> None:
        setup = sweep.study.setup
        assert isinstance(setup.cluster, SlurmCluster)
        self.sweep, self.setup, self.cluster, self.code = sweep, setup, setup.cluster, code
        self.name = new_launch(sweep.study.name)
        self.folder = setup.paths.runs / ".jobs" / self.name
        self.environment = environment_of_sbatch(os.environ, self.cluster)
        self.where = queue.target_cluster(self.cluster)
        self.array_size = max_array_size(self.cluster)
        self.num_submitted = self._num_asked = 0
        self._left: list[Item] = []
        self._words = ""

    def submit(self, items: Sequence[Item]) -> Outcome:
        """Submits items, as many as there is a place for; UserError, in SLURM's words, if it refuses any."""
        before, self._left, self._words = self.num_submitted, [], ""
        with tqdm(desc="submitting", unit=" jobs", leave=False) as bar:
            latest: dict[str, Place] = {}
            for kind in KINDS:
                waits_in_vain = {item.cell_id for item in self._left}
                mine = [item for item in items if item.stage.kind == kind]
                self._left += [item for item in mine if item.cell_id in waits_in_vain]
                mine = [item for item in mine if item.cell_id not in waits_in_vain]
                searched = {item.cell_id for item in items if item.stage == SEARCH} if kind == "train" else set[str]()
                placed: dict[str, Place] = {}
                for batch in self._waiting_batches(mine, latest, searched):
                    placed |= self._placed(batch)
                    bar.update(self.num_submitted - before - bar.n)
                latest |= placed
        return Outcome(self.num_submitted - before, tuple(self._left), self._words)

    def _job(self, item: Item) -> Job:
        return Job(item.cell, self.setup, item.stage)

    def _batches(
        self, items: Iterable[Item], dependency: str | None = None, apart: Collection[str] = ()
    ) -> Iterator[Batch]:
        """Items that ask for the same resources, as arrays no larger than the cluster takes.

        The cells in `apart` have arrays of their own, so that an array of their next stage can follow them whole.
        """
        shapes: dict[tuple[Kind, int, bool], list[Item]] = {}
        for item in items:
            job = self._job(item)
            shapes.setdefault((job.stage.kind, ranks_of(job), item.cell_id in apart), []).append(item)
        for alike in shapes.values():
            for start in range(0, len(alike), self.array_size):
                portion = alike[start : start + self.array_size]
                yield Batch(tuple(portion), tuple(map(self._job, portion)), dependency)

    def _waiting_batches(
        self, items: Sequence[Item], latest: Mapping[str, Place], apart: Collection[str]
    ) -> Iterator[Batch]:
        """Batches of one stage, which start behind the array of the stage before, behind single jobs, or at once."""
        at_once: list[Item] = []
        behind: dict[tuple[Place, str], list[Item]] = {}
        for item in items:
            if item.cell_id in latest:
                behind.setdefault((latest[item.cell_id], item.stage.name), []).append(item)
            elif (waits_for := self.sweep.job_before(item)) is not None:
                yield from self._batches([item], f"afterok:{waits_for}")
            else:
                at_once.append(item)
        yield from self._batches(at_once, apart=apart)
        for (place, _), together in behind.items():
            cell_ids = place.cell_ids
            if len(cell_ids) > 1 and [item.cell_id for item in together] == list(cell_ids):
                yield from self._batches(together, f"aftercorr:{place.array}")
                continue
            for item in together:
                element = f"_{cell_ids.index(item.cell_id)}" if len(cell_ids) > 1 else ""
                yield from self._batches([item], f"afterok:{place.array}{element}")

    def _placed(self, batch: Batch) -> dict[str, Place]:
        """Submits a batch, in portions if SLURM does not take it whole, and returns the places of its cells."""
        if self._words:  # there was no place for an earlier one
            self._left += batch.items
            return {}
        try:
            array, cell_ids = self._submit(batch), tuple(item.cell_id for item in batch.items)
        except RefusedError as refusal:
            if refusal.kind in ("full", "array") and len(batch.items) > 1:
                placed: dict[str, Place] = {}
                for portion in batch.portions():
                    placed |= self._placed(portion)
                return placed
            if refusal.kind in ("full", "silent"):
                self._words, self._left = refusal.words, [*self._left, *batch.items]
                return {}
            raise UserError(
                f"SLURM refused {len(batch.items)} jobs: {refusal.words}{self._already()}; "
                f"mend {keys_of(refusal.words)} and launch again: only what is missing is submitted"
            ) from refusal
        return {cell_id: Place(array, cell_ids) for cell_id in cell_ids}

    def _submit(self, batch: Batch) -> str:
        """Records, submits, completes the records; the number of the array, or of the job if there is but one."""
        name = f"{self.name}-{self._num_asked}"
        self._num_asked += 1
        recorded: list[tuple[Path, Submission]] = []
        for index, item in enumerate(batch.items):
            place = index if len(batch.items) > 1 else None
            submission = Submission(self.name, "slurm", name, place, slurm_cluster=self.where, ended=item.ended)
            recorded.append((RunDir(self.setup.paths.runs, item.cell_id).job(item.stage.name), submission))
        before = {path: read_submission(path) for path, _ in recorded}
        parameters = sbatch_parameters(batch.jobs[0], self.cluster, name, self._setup_lines(), batch.dependency)
        script = Script(self.folder, name, parameters, self.cluster.max_requeues, batch.jobs)
        try:
            for path, submission in recorded:
                write_submission(path, submission)
            numbers = script.submit(self.environment, self.where)
            for (path, submission), number in zip(recorded, numbers, strict=True):
                write_submission(path, submission.with_job(number, JobPaths(self.folder, number, 0).stdout))
        except RefusedError as refusal:
            if refusal.kind != "silent":  # else they are found by their name, if they come after all
                for path, submission in before.items():
                    path.unlink(missing_ok=True) if submission is None else write_submission(path, submission)
            raise
        except OSError as error:  # jobs that were submitted all the same are found by their name
            raise UserError(f"{len(recorded)} jobs cannot be recorded: {error}{self._already()}") from error
        self.num_submitted += len(numbers)
        return numbers[0].partition("_")[0]

    def _already(self) -> str:
        return f"; {self.num_submitted} jobs had been submitted before and stay" if self.num_submitted else ""

    def _setup_lines(self) -> list[str]:
        variables = {
            **snapshot.environment(self.code),
            LAUNCH: self.name,
            "TQDM_MININTERVAL": "30",
            "PYTHONFAULTHANDLER": "1",
        }
        lines = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
        # A module that cluster.setup loads may have set PYTHONPATH.  No colon without a path behind it: an empty entry
        # means the working directory.
        behind = 'export PYTHONPATH="$PYTHONPATH${theirs:+:$theirs}"'
        return [
            *endings.SCRIPT,
            *carried(os.environ),
            CPUS,
            *self.cluster.setup,
            'theirs="${PYTHONPATH:-}"',
            *lines,
            behind,
        ]
