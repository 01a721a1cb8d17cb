"""The state of a study, done, under way, failed or missing, from its files and the scheduler.

Every stage of every cell is one item.  Its state is derived anew each time and never stored, so there is nothing that
could disagree with the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from evaluation.protocol import PlanShare, survey
from evaluation.results.store import ResultStore
from evaluation.stages import SEARCH, TRAIN, Stage, has_searches, to_search
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import Study
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.folder import RunDir
from matquant.runs.status import Status, read_status
from slurm.queue import ask_for, is_slurm
from slurm.records import Submission, read_submission
from slurm.states.item import KINDS, STATES, Item, ItemState
from slurm.states.known import Known
from slurm.states.progress import identities, needs_slurm, observed, under_way

__all__ = ["KINDS", "STATES", "Item", "ItemState", "Sweep", "absolute", "look", "observe"]


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

    def waits_in_vain(self, item: Item) -> bool:
        """True for a job in SLURM's queue whose stage before it has ended without output, and has no job there."""
        before = self.leads_to(item)
        return item.job is not None and (before is None or before.job is None)

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
    found = _found(study)
    traces = [trace for one in found for trace in one.traces]
    in_doubt = [submission for submission, status in traces if submission and needs_slurm(submission, status)]
    asked = {identity for trace in traces for identity in identities(*trace)}
    if not asked or not (in_doubt or is_slurm(study.setup.cluster) or shutil.which("squeue")):
        return _derived(study, found, Known())
    try:
        known = ask_for(asked)
    except UserError as error:
        if not in_doubt:  # every job that may be at work has reported lately, or has ended
            return _derived(study, found, Known())
        raise _unanswered(study, in_doubt, error) from error
    return _derived(study, found, known)


def observe(study: Study, known: Known | None = None) -> Sweep:
    """The state of every item, from the disk and from what is known of SLURM's jobs."""
    return _derived(study, _found(study), known or Known())


Trace = tuple[Submission | None, Status | None]
"""The record of what was submitted for a stage, and the last report of a process that worked on it."""


@dataclass(frozen=True)
class _Found:
    """The traces on disk of one cell: its items, done or missing, and evaluations under another `evaluate_jobs`."""

    run: RunDir
    items: tuple[Item, ...]
    elsewhere: Mapping[str, Trace]

    @property
    def traces(self) -> list[Trace]:
        mine = [(item.submission, item.status) for item in self.items if item.state != "done"]
        return [*mine, *self.elsewhere.values()]


def _unanswered(study: Study, in_doubt: Sequence[Submission], error: UserError) -> UserError:
    """A sentence for jobs whose state only SLURM knows, where it does not answer."""
    users = sorted({submission.user for submission in in_doubt if submission.user and not submission.is_mine})
    by = f" by {' and '.join(users)}" if users else ""
    where = ", whose commands cannot be found here" if shutil.which("squeue") is None else ""
    return UserError(
        f"{len(in_doubt)} jobs of this study were submitted to SLURM{by}{where} ({error}); run this on a login node of "
        f"that cluster, or, if the jobs have ended, delete {study.setup.paths.runs}/*/*.job.json"
    )


def _found(study: Study) -> list[_Found]:
    """Looks at the disk, where what is done is known by its output alone."""
    setup, cells = study.setup, {cell.id: cell for cell in study.cells}
    gaps = survey(cells.values(), setup.readout, ResultStore(setup.paths.results))
    return [_found_of(cell, cell_id, gaps[cell_id], setup) for cell_id, cell in cells.items()]


def _found_of(cell: Cell, cell_id: str, gaps: Mapping[Plan, tuple[str, ...]], setup: Setup) -> _Found:
    run, plans, items = RunDir(setup.paths.runs, cell_id), setup.readout.plans_of(cell), list[Item]()
    if cell.base.kind not in ("none", "foreign"):
        is_there = not gaps or run.description.exists()
        items.append(Item(cell, cell_id, TRAIN, "done" if is_there else "missing"))
    if has_searches(plans):
        left = to_search(cell, setup, gaps)
        items.append(Item(cell, cell_id, SEARCH, "missing" if left else "done", plans=left))
    shares = [PlanShare(index, setup.cluster.evaluate_jobs) for index in range(setup.cluster.evaluate_jobs)]
    stages = {Stage("evaluate", share): share.of(plans) for share in shares if share.of(plans)}
    for stage, mine in stages.items():
        owed = {plan: gaps[plan] for plan in mine if plan in gaps}
        items.append(Item(cell, cell_id, stage, "missing" if owed else "done", gaps=owed))
    names = {path.name.split(".")[0] for path in run.path.glob("evaluate*.json")} if gaps else set[str]()
    elsewhere = {name: _trace(run, name) for name in sorted(names - {stage.name for stage in stages})}
    return _Found(run, tuple(_with_traces(item, run) for item in items), elsewhere)


def _trace(run: RunDir, stage: str) -> Trace:
    return read_submission(run.job(stage)), read_status(run.status(stage))


def _with_traces(item: Item, run: RunDir) -> Item:
    if item.state == "done":
        return item
    submission, status = _trace(run, item.stage.name)
    return replace(item, submission=submission, status=status)


def _derived(study: Study, found: Iterable[_Found], known: Known) -> Sweep:
    return Sweep(study, tuple(item for one in found for item in _items(one, known)))


def _items(found: _Found, known: Known) -> Iterator[Item]:
    """The items of a cell with their states."""
    before: list[Item] = []
    elsewhere = _evaluated_elsewhere(found.elsewhere, known)
    for item in found.items:
        if item.stage.kind != "evaluate":
            before.append(_led_up_to(observed(item, found.run, known), before))
        elif item.state == "missing" and elsewhere is not None:
            note = f"a job with another cluster.evaluate_jobs works on its plans: {elsewhere}"
            yield replace(item, state="running", note=note, status=None)
        else:
            yield _led_up_to(observed(item, found.run, known), before)
        if item.stage.kind != "evaluate":
            yield before[-1]


def _evaluated_elsewhere(elsewhere: Mapping[str, Trace], known: Known) -> str | None:
    """An evaluation of a cell, under another `evaluate_jobs`, that is running or queued."""
    for stage, trace in elsewhere.items():
        if under_way(*trace, known) is not None:
            return stage
    return None


def _last_not_over(items: Iterable[Item]) -> Item | None:
    """The last of some stages that is not over, for which those behind it wait."""
    return next((item for item in reversed(list(items)) if not item.is_over), None)


def _led_up_to(item: Item, before: Sequence[Item]) -> Item:
    """The item, set to missing if the stage that its job waits for has ended without output, or cannot start.

    SLURM takes a while to notice that, and some clusters keep such a job for ever.
    """
    waits_for = _last_not_over(before)
    if waits_for is None or item.state != "queued" or waits_for.state not in ("failed", "missing"):
        return item
    has = "cannot start" if waits_for.job is not None else "has failed"
    return replace(item, state="missing", note=f"its job waits for one that {has}")
