"""Submits jobs to SLURM: an array for each stage; each element waits for the stage before it of its own cell.

Every job is recorded before it is submitted and completed with its number afterwards; the records of refused jobs are
removed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from tqdm import tqdm

from evaluation.stages import SEARCH, TRAIN, Kind
from matquant.config.setup import SlurmCluster
from matquant.errors import UserError
from matquant.runs.folder import RunDir
from matquant.runs.status import LAUNCH
from slurm import queue, snapshot
from slurm.estimate import ranks_of
from slurm.jobs import Job
from slurm.plan import KINDS, Item, Sweep
from slurm.records import Submission, new_launch, read_submission, write_submission
from slurm.states import endings


@dataclass(frozen=True)
class Batch:
    """Jobs that are submitted together: of one shape, and each waiting for nothing, or for the stage before it."""

    items: tuple[Item, ...]
    jobs: tuple[Job, ...]
    dependency: str | None = None


class Place(NamedTuple):
    """The array, or the job if it has but one element, that does the latest stage of some cells."""

    array: str
    cell_ids: tuple[str, ...]


class Launch:
    """One launch: its snapshot of the code, its folder of logs, and the jobs submitted so far."""

    def __init__(self, sweep: Sweep, code: Path) -> None:
        setup = sweep.study.setup
        assert isinstance(setup.cluster, SlurmCluster)
        self.sweep, self.setup, self.cluster, self.code = sweep, setup, setup.cluster, code
        self.name = new_launch(sweep.study.name)
        self.folder = setup.paths.runs / ".jobs" / self.name
        self.where = queue.target_cluster(self.cluster)
        self.num_submitted = 0
        self._bar = tqdm(desc="submitting", unit=" jobs", leave=False)

    def submit(self, items: Sequence[Item]) -> int:
        """Submits items and returns how many jobs there are now; UserError, in SLURM's words, if it refuses."""
        with self._bar:
            latest: dict[str, Place] = {}
            for kind in KINDS:
                mine = [item for item in items if item.stage.kind == kind]
                searched = {item.cell_id for item in items if item.stage == SEARCH} if kind == "train" else set[str]()
                placed: dict[str, Place] = {}
                for batch in self._waiting_batches(mine, latest, searched):
                    array, cell_ids = self._submit(batch), tuple(item.cell_id for item in batch.items)
                    placed |= {cell_id: Place(array, cell_ids) for cell_id in cell_ids}
                latest |= placed
        return self.num_submitted

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
            for start in range(0, len(alike), self.cluster.max_array_size):
                portion = alike[start : start + self.cluster.max_array_size]
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

    def _submit(self, batch: Batch) -> str:
        """Records, submits, completes the records; the number of the array, or of the job if there is but one."""
        name = f"{self.name}-{self.num_submitted}"
        recorded: list[tuple[Path, Submission]] = []
        for index, item in enumerate(batch.items):
            place = index if len(batch.items) > 1 else None
            submission = Submission(self.name, "slurm", name, place, slurm_cluster=self.where, ended=item.ended)
            recorded.append((RunDir(self.setup.paths.runs, item.cell_id).job(item.stage.name), submission))
        already = f"; {self.num_submitted} jobs had been submitted before and stay" if self.num_submitted else ""
        before = {path: read_submission(path) for path, _ in recorded}
        try:
            for path, submission in recorded:
                write_submission(path, submission)
            with redirect_stderr(StringIO()):  # submitit prints what it then raises
                jobs = self._executor(batch, name).submit_array(batch.jobs)
            for (path, submission), job in zip(recorded, jobs, strict=True):
                write_submission(path, submission.with_job(job.job_id, JobPaths(self.folder, job.job_id, 0).stdout))
        except (FailedJobError, FailedSubmissionError) as error:
            for path, submission in before.items():
                path.unlink(missing_ok=True) if submission is None else write_submission(path, submission)
            raise UserError(
                f"SLURM refused {len(recorded)} jobs: {_words_of_sbatch(error)}{already}; "
                "mend cluster.* and launch again: only what is missing is submitted"
            ) from error
        except OSError as error:  # jobs that were submitted all the same are found by their name
            raise UserError(f"{len(recorded)} jobs cannot be recorded: {error}{already}") from error
        self.num_submitted += len(jobs)
        self._bar.update(len(jobs))
        return jobs[0].job_id.partition("_")[0]

    def _executor(self, batch: Batch, name: str) -> submitit.SlurmExecutor:
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=self.cluster.max_requeues)
        executor.update_parameters(**sbatch_parameters(batch, self.cluster, name, self._setup_lines()))
        return executor

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
        return [*endings.SCRIPT, *self.cluster.setup, 'theirs="${PYTHONPATH:-}"', *lines, behind]


def sbatch_parameters(batch: Batch, cluster: SlurmCluster, name: str, setup: Sequence[str]) -> dict[str, Any]:
    """The parameters of one batch, in submitit's words."""
    job = batch.jobs[0]
    nodes = cluster.nodes if job.is_distributed else 1
    tasks = max(1, job.num_gpus)
    extra: dict[str, Any] = {"requeue": True, **cluster.sbatch}
    if batch.dependency is not None:
        # A job goes away, if the stage before it has failed, instead of waiting for ever.
        extra |= {"dependency": batch.dependency, "kill-on-invalid-dep": "yes"}
    time_min = cluster.time_min if job.stage == TRAIN else cluster.evaluate_time_min or cluster.time_min
    optional = {key: getattr(cluster, key) for key in ("partition", "account", "qos", "constraint")}
    return {
        **{key: value for key, value in optional.items() if value is not None},
        **({"gpus_per_node": job.num_gpus} if job.num_gpus else {}),
        "job_name": name,
        "time": time_min,
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{round(tasks * cluster.mem_gb_per_task * 1024)}M",
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        "srun_args": ["--kill-on-bad-exit=1"],  # a rank that dies takes the others with it
        "setup": list(setup),
        "additional_parameters": extra,
    }


def _words_of_sbatch(error: Exception) -> str:
    """The message of sbatch, without submitit's traceback around it."""
    said = re.findall(r"sbatch: (?:error: )?(.+)", str(error))
    return "; ".join(dict.fromkeys(line.strip() for line in said)) or " ".join(str(error).split())[:500]
