"""The state of a study, done, under way, failed or missing, from its files and the scheduler.

Every stage of every cell is one item.  Its state is derived anew each time and never stored, so there is nothing that
could disagree with the files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, assert_never, get_args

from evaluation.protocol import PlanShare, survey
from evaluation.results.store import ResultStore
from evaluation.stages import SEARCH, TRAIN, Kind, Stage, has_searches, to_search
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import Study
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.folder import RunDir
from matquant.runs.status import Reason, Status, read_status
from slurm.queue import QueuedJob, how_jobs_ended, is_slurm, jobs_in_queue
from slurm.records import Submission, read_submission

KINDS: tuple[Kind, ...] = get_args(Kind)
ItemState = Literal["done", "running", "queued", "failed", "missing"]
STATES: tuple[ItemState, ...] = ("done", "running", "queued", "failed", "missing")
RESUMABLE: tuple[Reason, ...] = ("killed", "cancelled", "interrupted", "disk full")
"""The reasons that come from outside a job: the next launch goes on with it, without --retry-failed."""
SACCT: Mapping[str, Reason] = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "CANCELLED": "cancelled",
}
NO_ROOM = 1_000_000  # bytes
OOM_KILLED = re.compile(r"\boom[-_ ]?kill", re.IGNORECASE)  # as slurmstepd writes it
STUBBORN: tuple[Reason, ...] = ("out of memory", "non-finite")
"""The reasons that the same job would meet again: only --retry-failed=all tries it again."""


@dataclass(frozen=True)
class Item:
    """One stage of one cell.  `note` explains its state.

    `gaps` are the results that an evaluation still owes, `plans` those that a search has still to find.
    """

    cell: Cell
    cell_id: str
    stage: Stage
    state: ItemState
    reason: Reason | None = None
    note: str = ""
    status: Status | None = None
    submission: Submission | None = None
    job: QueuedJob | None = None
    """The item's job, while it is in SLURM's queue; of a missing item, a job that can never run."""
    explained: bool = True
    """False if it left no reason for its failure; SLURM's accounts may have one."""
    gaps: Mapping[Plan, tuple[str, ...]] = field(default_factory=dict)
    plans: tuple[Plan, ...] = ()

    @property
    def num_results(self) -> int:
        """The number of results that are missing."""
        return sum(len(tasks) for tasks in self.gaps.values())

    @property
    def is_over(self) -> bool:
        """True if the stages behind it can start: a search that refuses some plans has found the others."""
        return self.state == "done" or (self.stage == SEARCH and self.state == "failed" and self.reason == "bad input")

    @property
    def place(self) -> int:
        """Its place in the order of stages."""
        return KINDS.index(self.stage.kind)


@dataclass(frozen=True)
class Sweep:
    """All items of a study: for each cell its training and its search, if it has them, then its evaluations."""

    study: Study
    items: tuple[Item, ...]

    def of(self, *states: ItemState) -> list[Item]:
        return [item for item in self.items if item.state in states]

    @cached_property
    def _cells(self) -> Mapping[str, list[Item]]:
        cells: dict[str, list[Item]] = {}
        for item in self.items:
            cells.setdefault(item.cell_id, []).append(item)
        return cells

    def leads_to(self, item: Item) -> Item | None:
        """The stage that has to end before an item can start; None if it can start now."""
        return _last_not_over(other for other in self._cells[item.cell_id] if other.place < item.place)

    def is_ready(self, item: Item) -> bool:
        """True if nothing has to happen before an item: an evaluation needs its cell's checkpoint and its plans."""
        return self.leads_to(item) is None

    def job_before(self, item: Item) -> str | None:
        """The id of the job that an item waits for; None if it waits for no job."""
        before = self.leads_to(item)
        if before is None or before.job is None or before.state not in ("running", "queued"):
            return None
        return before.job.job_id

    def only(self, wanted: Callable[[str], bool]) -> Sweep:
        """The sweep of the cells whose id is wanted."""
        return Sweep(self.study, tuple(item for item in self.items if wanted(item.cell_id)))


def absolute(study: Study) -> Study:
    """The study with absolute paths: its jobs may start in another folder."""
    setup = study.setup
    paths = {name: getattr(setup.paths, name).absolute() for name in type(setup.paths).model_fields}
    return replace(study, setup=setup.model_copy(update={"paths": setup.paths.model_copy(update=paths)}))


def look(study: Study) -> Sweep:
    """The state of a study now; UserError if some of it is on SLURM and SLURM does not answer.

    SLURM is asked whatever cluster is named: its jobs go on when the study is looked at with another cluster.
    """
    if is_slurm(study.setup.cluster):
        return observe(study, jobs_in_queue())
    sweep = observe(study)
    unknown = [item for item in sweep.items if item.state != "done" and _may_be_on_slurm(item)]
    if not unknown:
        return sweep
    if shutil.which("squeue") is None:
        raise UserError(
            f"{len(unknown)} jobs of this study were submitted to SLURM, whose commands cannot be found here; run "
            f"this on a login node, or, if the jobs have ended, delete {study.setup.paths.runs}/*/*.job.json"
        )
    return observe(study, jobs_in_queue())


def _may_be_on_slurm(item: Item) -> bool:
    """True if an item was submitted to SLURM and has left no status of its end."""
    submission, status = item.submission, item.status
    if submission is None or submission.cluster != "slurm":
        return False
    return status is None or status.launch != submission.launch or status.state == "running"


def observe(study: Study, queue: Mapping[str, QueuedJob] | None = None) -> Sweep:
    """Looks at the disk, and at SLURM's queue if there is one, and derives the state of every item."""
    setup, cells = study.setup, {cell.id: cell for cell in study.cells}
    gaps = survey(cells.values(), setup.readout, ResultStore(setup.paths.results))
    items: list[Item] = []
    for cell_id, cell in cells.items():
        items += _items(cell, cell_id, gaps[cell_id], setup, queue or {})
    return Sweep(study, tuple(_with_sacct(items) if queue is not None else items))


def _items(
    cell: Cell, cell_id: str, gaps: Mapping[Plan, tuple[str, ...]], setup: Setup, queue: Mapping[str, QueuedJob]
) -> list[Item]:
    run, plans, before = RunDir(setup.paths.runs, cell_id), setup.readout.plans_of(cell), list[Item]()
    if cell.base.kind not in ("none", "foreign"):
        is_there = not gaps or run.description.exists()
        before.append(_observed(Item(cell, cell_id, TRAIN, "done" if is_there else "missing"), run, queue))
    if has_searches(plans):
        left = to_search(cell, setup, gaps)
        searching = _observed(Item(cell, cell_id, SEARCH, "missing" if left else "done", plans=left), run, queue)
        before.append(_led_up_to(searching, before))
    shares = [PlanShare(index, setup.cluster.evaluate_jobs) for index in range(setup.cluster.evaluate_jobs)]
    stages = {Stage("evaluate", share): share.of(plans) for share in shares if share.of(plans)}
    return [*before, *(_led_up_to(item, before) for item in _evaluations(cell, cell_id, gaps, run, stages, queue))]


def _evaluations(
    cell: Cell,
    cell_id: str,
    gaps: Mapping[Plan, tuple[str, ...]],
    run: RunDir,
    stages: Mapping[Stage, Sequence[Plan]],
    queue: Mapping[str, QueuedJob],
) -> Iterable[Item]:
    elsewhere = _evaluated_elsewhere(run, {stage.name for stage in stages}, queue) if gaps else None
    for stage, plans in stages.items():
        owed = {plan: gaps[plan] for plan in plans if plan in gaps}
        item = Item(cell, cell_id, stage, "missing" if owed else "done", gaps=owed)
        if owed and elsewhere is not None:
            note = f"a job with another cluster.evaluate_jobs works on its plans: {elsewhere}"
            yield replace(item, state="running", note=note)
        else:
            yield _observed(item, run, queue)


def _last_not_over(items: Iterable[Item]) -> Item | None:
    """The last of some stages that is not over, for which those behind it wait."""
    return next((item for item in reversed(list(items)) if not item.is_over), None)


def _led_up_to(item: Item, before: Sequence[Item]) -> Item:
    """The item, set to missing if the stage that its job waits for has ended without output.

    SLURM takes a while to notice that, and some clusters keep such a job for ever.
    """
    waits_for = _last_not_over(before)
    if waits_for is None or item.state != "queued" or waits_for.state not in ("failed", "missing"):
        return item
    return replace(item, state="missing", note="its job waits for one that has failed")


def _evaluated_elsewhere(run: RunDir, stages: set[str], queue: Mapping[str, QueuedJob]) -> str | None:
    """An evaluation of this cell, under another `evaluate_jobs`, that is running or queued."""
    found = {path.name.split(".")[0] for path in run.path.glob("evaluate*.json")}
    for stage in sorted(found - stages):
        if _follow(read_submission(run.job(stage)), read_status(run.status(stage)), queue) is not None:
            return stage
    return None


def _observed(item: Item, run: RunDir, queue: Mapping[str, QueuedJob]) -> Item:
    """The item with its state; of one that is done, whose output is on disk, nothing else is looked at."""
    if item.state == "done":
        return item
    submission, status = read_submission(run.job(item.stage.name)), read_status(run.status(item.stage.name))
    item = replace(item, submission=submission, status=status)
    if (followed := _follow(submission, status, queue)) is not None:
        state, note = followed
        return replace(item, state=state, note=note, job=_job_of(submission, queue))
    if submission is not None and not _has_reported(submission, status):
        if submission.log is not None and Path(submission.log).exists():
            if _says_nothing(Path(submission.log)):
                reason, note = _why_killed(run, submission)
                return replace(item, state="failed", reason=reason, note=note, explained=reason != "killed")
            note = "its process ended before it could say why: read the log"
            return replace(item, state="failed", reason="error", note=note, explained=False)
        return replace(item, note="never started: cancelled, or its training failed")
    if status is None:
        return item
    match status.state:
        case "running":
            reason, note = _why_killed(run, submission)
            return replace(item, state="failed", reason=reason, note=note, explained=reason != "killed")
        case "failed":
            return replace(item, state="failed", reason=status.reason, note=status.message or "")
        case "stopped":
            return replace(item, state="failed", reason="interrupted", note=status.message or "")
        case "done":  # but its output is missing: deleted, or other results are asked for now
            return item
        case _:
            assert_never(status.state)


def _has_reported(submission: Submission, status: Status | None) -> bool:
    """True if a status is that of a submitted job, or of something that ran after it."""
    return status is not None and (status.launch == submission.launch or status.started > submission.submitted)


def _why_killed(run: RunDir, submission: Submission | None) -> tuple[Reason, str]:
    """The reason, and a note, for a process that ended without a status."""
    if shutil.disk_usage(run.path).free < NO_ROOM:
        return "disk full", "the process ended without a status, and the disk of the run folder is full"
    if submission is not None and submission.log is not None and OOM_KILLED.search(_end_of(Path(submission.log))):
        return "out of memory", "SLURM killed it for the memory it used (see the log)"
    return "killed", "the process ended without a status (killed?)"


def _says_nothing(log: Path) -> bool:
    """True for the log of a process that was killed before it wrote anything; submitit may have noted its start."""
    return all(not line.strip() or line.startswith("submitit INFO") for line in _end_of(log).splitlines())


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _follow(
    submission: Submission | None, status: Status | None, queue: Mapping[str, QueuedJob]
) -> tuple[ItemState, str] | None:
    """The state of an item that is running or queued, and a note; None for any other item."""
    job = _job_of(submission, queue)
    if job is not None:
        waits = "waits for a job that has failed" if not job.can_run else f"{job.state.lower()}: {job.reason}"
        return ("queued", waits) if job.is_waiting else ("running", f"job {job.job_id}")
    if status is not None and status.state == "running" and _is_alive(status, queue):
        return "running", f"process {status.pid} on {status.host}"
    if submission is not None and submission.process_is_alive():
        return "running", f"process {submission.pid} is starting"
    return None


def _is_alive(status: Status, queue: Mapping[str, QueuedJob]) -> bool:
    """False for a SLURM job that has left the queue, whatever its last status says."""
    return status.is_alive() and (status.slurm_job is None or status.slurm_job in queue)


def _job_of(submission: Submission | None, queue: Mapping[str, QueuedJob]) -> QueuedJob | None:
    """The job in SLURM's queue; found by its name if the launcher died before it could note the number."""
    if submission is None or submission.cluster != "slurm":
        return None
    if submission.job_id is not None:
        return queue.get(submission.job_id)
    suffix = "" if submission.index is None else f"_{submission.index}"
    return next((job for job in queue.values() if job.name == submission.name and job.job_id.endswith(suffix)), None)


def _with_sacct(items: Sequence[Item]) -> Iterable[Item]:
    """The items; unexplained failures get SLURM's own word for them, if it keeps accounts."""
    unexplained = [item for item in items if not item.explained and item.submission is not None]
    words = how_jobs_ended(item.submission.job_id for item in unexplained if item.submission and item.submission.job_id)
    for item in items:
        word = words.get(item.submission.job_id or "") if not item.explained and item.submission else None
        if word is None:
            yield item
        else:
            yield replace(item, reason=SACCT.get(word, item.reason), note=f"{item.note} (SLURM says {word})")
