"""Launches a study: looks at what is on disk, prints what is missing and its cost, and submits that alone."""

from __future__ import annotations

import fnmatch
import os
import shlex
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, assert_never

from filelock import FileLock, Timeout

from evaluation import preflight
from evaluation.identity import identity_refusals
from matquant.command.parsing import parse
from matquant.command.terminal import MISTAKE
from matquant.config.setup import DebugCluster, LocalCluster, Setup, SlurmCluster
from matquant.config.study import Study, load_study
from matquant.disk import in_words
from matquant.errors import UserError
from slurm import queue, snapshot, wording
from slurm.jobs import Job
from slurm.plan import RESUMABLE, STUBBORN, Item, Sweep, absolute, look, observe


@dataclass(frozen=True)
class Options:
    overrides: tuple[str, ...]
    dry_run: bool
    retry_failed: Literal["some", "all"] | None
    only: tuple[str, ...]
    cancel: bool
    wait: bool
    show_all: bool

    def wants(self, item: Item) -> bool:
        """True for an item to submit: what is missing, what was stopped from outside, and failures if asked for."""
        match item.state:
            case "missing":
                return True
            case "failed":
                return item.reason in RESUMABLE or self._retries(item)
            case "done" | "running" | "queued":
                return False
            case _:
                assert_never(item.state)

    def _retries(self, item: Item) -> bool:
        match self.retry_failed:
            case "all":
                return True
            case "some":
                return item.reason not in STUBBORN
            case None:
                return False
            case _:
                assert_never(self.retry_failed)

    def chosen(self, cell_id: str) -> bool:
        return not self.only or any(fnmatch.fnmatchcase(cell_id, pattern) for pattern in self.only)


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    study = absolute(load_study(options.overrides))
    with in_words(dict(study.setup.paths)):
        return cancel(study, options) if options.cancel else launch(study, options)


def launch(study: Study, options: Options) -> int:
    """Prints the plan and, unless it is a dry run, carries it out; the exit status."""
    setup = study.setup
    if not any(options.chosen(cell.id) for cell in study.cells):
        matching = f" whose id matches --only {' or '.join(options.only)}" if options.only else ""
        raise UserError(f"{study.name} has no cells{matching}; see its file under conf/experiment/")
    if options.dry_run:
        preflight.check_folders(setup)
        preflight.check_tracking(setup)
        preflight.check_tasks(setup)
        sweep = _look_if_possible(study, options)
        chosen, refused = show_plan(sweep, options)
        print("dry run: nothing was submitted")
        _require_room(sweep, chosen)
        return MISTAKE if refused else 0
    if queue.is_slurm(setup.cluster):
        queue.require_slurm()
    preflight.check_folders(setup)
    preflight.check_tracking(setup)
    preflight.check_tasks(setup)
    with _one_launcher(setup):
        sweep = _look(study, options)
        chosen, refused = show_plan(sweep, options)
        _require_room(sweep, chosen)
        if chosen and queue.is_slurm(setup.cluster):
            from slurm.submit import Launch

            _cancel_what_can_never_run(chosen)
            number = Launch(sweep, snapshot.take(setup.paths.runs / ".snapshots")).submit(chosen)
            print(f"submitted {number} jobs; matquant status {shlex.join(options.overrides)} shows them")
    status = 0
    if not queue.is_slurm(setup.cluster):
        if chosen or sweep.of("running"):
            status = _work_here(study, options, {item.cell_id for item in chosen})
    elif options.wait:
        status = _wait(study, options)
    return MISTAKE if refused else status


def _require_room(sweep: Sweep, chosen: Iterable[Item]) -> None:
    preflight.check_room((item.cell, sweep.study.setup) for item in chosen)


def _cancel_what_can_never_run(items: Iterable[Item]) -> None:
    """Cancels the jobs of items that are missing all the same: they wait for a training that has failed."""
    with suppress(UserError):  # they may go by themselves, and do no harm if they stay
        queue.cancel({item.job.job_id for item in items if item.state == "missing" and item.job is not None})


def cancel(study: Study, options: Options) -> int:
    """Cancels the jobs of a study, or in a dry run prints how many."""
    at_work = [item for item in _look(study, options).items if item.state in ("running", "queued") or item.job]
    job_ids = {item.job.job_id for item in at_work if item.job is not None}
    here = [item.submission for item in at_work if item.job is None and item.submission is not None]
    mine = [submission for submission in here if submission.process_is_alive()]
    if not options.dry_run:
        queue.cancel(job_ids)
        # A launcher on this machine stops its workers; a worker without a launcher is stopped directly.
        for pid in {submission.living_launcher() or submission.pid for submission in mine}:
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
    would = "would cancel" if options.dry_run else "cancelled"
    print(f"{would} {len(job_ids) + len(mine)} jobs; finished work is on disk, and a launch goes on from there")
    if others := len(at_work) - len(job_ids) - len(mine):
        print(f"{others} more are running that no launch started; stop them where they were started")
    return 0


def show_plan(sweep: Sweep, options: Options) -> tuple[list[Item], Mapping[str, str]]:
    """Prints the state, the jobs to submit with their cost, and the refused cells; returns what to submit, and those.

    A dry run prints the cost of refused cells too: what is missing here may be there where the jobs will run.
    """
    print(wording.overview(sweep))
    chosen = [item for item in sweep.items if options.wants(item)]
    # Of all cells: the results of one that is done are no results of other weights.
    refused = identity_refusals(list({item.cell_id: item.cell for item in sweep.items}.values()), sweep.study.setup)
    if chosen:
        cells = {item.cell_id: item.cell for item in chosen}
        refused |= preflight.refusals(list(cells.values()), sweep.study.setup)
        costed = _without_orphans(sweep, chosen)
        chosen = _without_orphans(sweep, [item for item in chosen if item.cell_id not in refused])
        if costs := _costs(sweep, costed if options.dry_run else chosen, refused, whole=options.show_all):
            print(f"\n{costs}")
    left = [item for item in sweep.of("failed") if not options.wants(item)]
    if refused or left:
        print("\nnot submitted:")
        for cell_ids, reason in wording.shared(refused):
            print(f"{cell_ids}: {reason}")
        if left:
            print(wording.failures(left, whole=options.show_all))
    if not chosen:
        print("\nnothing to submit")
    return chosen, refused


def _without_orphans(sweep: Sweep, chosen: Sequence[Item]) -> list[Item]:
    """The chosen items without those that cannot start in this launch; a later launch submits them.

    The stage before such an item has failed; or, on SLURM, a process works on it, for which no job can wait.
    """
    kept: dict[tuple[str, str], Item] = {}
    waits = not queue.is_slurm(sweep.study.setup.cluster)  # the launcher stays, and waits for running stages
    for item in chosen:  # of each cell in the order of its stages
        before = sweep.leads_to(item)
        under_way = before is not None and ((waits and before.state == "running") or sweep.job_before(item) is not None)
        if before is None or under_way or (before.cell_id, before.stage.name) in kept:
            kept[item.cell_id, item.stage.name] = item
    return list(kept.values())


def _costs(sweep: Sweep, chosen: Sequence[Item], refused: Collection[str], *, whole: bool) -> str:
    """The table of costs; empty if there is nothing whose cost is known."""
    from slurm.estimate import cost_of  # torch takes seconds to import

    setup = sweep.study.setup
    rows = [["cell", "stage", "hours", "memory GB", "disk GB", ""]]
    hours = disk = 0.0
    room = setup.cluster.gpu_memory_gb if queue.is_slurm(setup.cluster) else None
    for item in chosen:
        try:
            cost = cost_of(Job(item.cell, setup, item.stage), item.plans or tuple(item.gaps))
        except UserError:  # its model is not there, which is why it is refused
            continue
        hours, disk = hours + cost.gpu_hours, disk + cost.disk_gb
        warning = f"more than cluster.gpu_memory_gb={room:g}" if room and cost.memory_gb > room else ""
        again = f"again after: {item.reason}" if item.state == "failed" else ""
        note = "refused, see below" if item.cell_id in refused else warning or again
        rows.append(
            [
                item.cell_id,
                item.stage.name,
                f"{cost.gpu_hours:.2f}",
                f"{cost.memory_gb:.1f}",
                f"{cost.disk_gb:.2f}",
                note,
            ]
        )
    unit = "GPU-hours" if queue.is_slurm(setup.cluster) else "hours of a worker"
    if len(rows) == 1:
        return ""
    total = f"{len(rows) - 1} jobs, about {hours:.1f} {unit} at cluster.tflops={setup.cluster.tflops:g}, {disk:.1f} GB"
    return f"{wording.table(rows, whole=whole)}\n\n{total} (estimates, good to a factor of two)"


def _work_here(study: Study, options: Options, cell_ids: set[str]) -> int:
    from slurm.here import run_debug, run_local  # submitit, which only starting jobs needs

    def again() -> Sweep:
        return _look(study, options)

    def choose(sweep: Sweep) -> Sequence[Item]:
        return [item for item in sweep.items if options.wants(item) and item.cell_id in cell_ids]

    match study.setup.cluster:
        case DebugCluster():
            run_debug(again, choose)
        case LocalCluster():
            run_local(again, choose, snapshot.take(study.setup.paths.runs / ".snapshots"))
        case SlurmCluster():
            raise AssertionError("jobs of a SLURM cluster are submitted")
        case _:
            assert_never(study.setup.cluster)
    return _conclude(again(), options)


def _wait(study: Study, options: Options) -> int:
    """Stays until no job of the study is waiting or running; the exit status."""
    while True:
        try:
            sweep = _look(study, options)
        except UserError as error:  # a controller that restarts is no reason to end a wait of days
            print(f"{error}; asking again", file=sys.stderr)
        else:
            if not sweep.of("queued", "running"):
                _cancel_what_can_never_run(sweep.items)
                return _conclude(sweep, options)
        time.sleep(5)


def _conclude(sweep: Sweep, options: Options) -> int:
    """Says how a sweep has ended; 0 if everything is there."""
    print(f"\n{wording.overview(sweep)}")
    if failed := sweep.of("failed"):
        print(f"\n{wording.failures(failed, whole=options.show_all)}")
    if len(sweep.of("done")) < len(sweep.items):
        return 1
    print(f"\nthe report: matquant report {shlex.join(_without_cluster(options.overrides))}")
    return 0


def _look(study: Study, options: Options) -> Sweep:
    return look(study).only(options.chosen)


def _look_if_possible(study: Study, options: Options) -> Sweep:
    """The state of a study for a dry run: where SLURM does not answer, without its queue."""
    try:
        return _look(study, options)
    except UserError as error:
        sweep = observe(study).only(options.chosen)  # raises the same if it is not SLURM's
        print(f"without SLURM's queue, whose jobs count as missing: {error}\n")
        return sweep


@contextmanager
def _one_launcher(setup: Setup) -> Iterator[None]:
    """Lets one launcher at a time look and submit: two at once would find the same jobs missing."""
    lock = FileLock(setup.paths.runs / ".launch.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print("another launcher is at work on this folder; waiting for it", file=sys.stderr)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _without_cluster(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("cluster")]


def _options(arguments: Sequence[str]) -> Options:
    given = parse("launch", arguments)
    return Options(
        tuple(given.overrides),
        given.dry_run,
        given.retry_failed,
        tuple(given.only),
        given.cancel,
        given.wait,
        given.all,
    )
