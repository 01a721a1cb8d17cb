"""Launches a study: looks at what is on disk, prints what is missing and its cost, and submits that alone."""

from __future__ import annotations

import fnmatch
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, assert_never

from filelock import FileLock, Timeout

from evaluation.asked import without_unknown
from evaluation.planning import preflight
from matquant.command.parsing import parse
from matquant.command.terminal import MISTAKE
from matquant.config.setup import DebugCluster, LocalCluster, Setup, SlurmCluster
from matquant.config.study import Study, load_study
from matquant.disk import in_words
from matquant.errors import UserError
from matquant.runs.folder import SHARED
from slurm import gpus, queue, snapshot, wording
from slurm.cancelling import cancel, cancel_what_waits_in_vain
from slurm.plan import Item, Sweep, absolute, look, observe
from slurm.showing import show_plan, without_orphans

if TYPE_CHECKING:
    from slurm.sbatch.feeding import Feeder


SHOWN_IDS = 3
"""The ids of cells that a sentence names."""


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
                is_mine = item.job is None or item.owner is None  # another user's job cannot be replaced
                return is_mine and (item.goes_on_unasked or item.goes_on_if_asked(self.retry_failed))
            case "done" | "running" | "queued":
                return False
            case _:
                assert_never(item.state)

    def chosen(self, cell_id: str) -> bool:
        return not self.only or any(fnmatch.fnmatchcase(cell_id, pattern) for pattern in self.only)


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    study = absolute(load_study(options.overrides))
    with in_words(dict(study.setup.paths)):
        if options.cancel:
            return cancel(look(study), options.chosen, dry_run=options.dry_run)
        return launch(study, options)


def launch(study: Study, options: Options) -> int:
    """Prints the plan and, unless it is a dry run, carries it out; the exit status."""
    setup = study.setup
    if not any(options.chosen(cell.id) for cell in study.cells):
        matching = f" whose id matches --only {' or '.join(options.only)}" if options.only else ""
        shown = [cell.id for cell in study.cells[:SHOWN_IDS]]
        more = f" and {len(study.cells) - len(shown)} more" if len(study.cells) > len(shown) else ""
        raise UserError(f"{study.name} has no cells{matching}; it has {', '.join(shown) or 'none at all'}{more}")
    if options.dry_run:
        return _dry_run(study, options)
    if queue.is_slurm(setup.cluster):
        queue.require_slurm()
    preflight.check_folders(setup)
    preflight.check_tracking(setup)
    preflight.check_tasks(setup)
    gpus.check_gpus(setup)
    feeder = None
    with _one_launcher(setup):
        sweep = _look(study, options)
        plan = show_plan(sweep, options.wants, is_dry=options.dry_run, whole=options.show_all)
        chosen = plan.chosen
        _require_room(sweep, chosen)
        if chosen and queue.is_slurm(setup.cluster):
            feeder = _submit(sweep, chosen, options)
    status = 0
    if not queue.is_slurm(setup.cluster):
        if chosen or sweep.of("running"):
            status = _work_here(study, options, {item.cell_id for item in chosen})
    elif options.wait:
        status = _wait(study, options, feeder)
    elif feeder is not None:
        status = 1
    return MISTAKE if plan.refused else status


def _submit(sweep: Sweep, chosen: Sequence[Item], options: Options) -> Feeder | None:
    """Submits jobs, and returns what is to feed the queue with those for which it had no place."""
    from slurm.sbatch.feeding import Feeder, in_words  # torch, which only estimates and submitting need
    from slurm.submit import Launch

    cancel_what_waits_in_vain(chosen)
    launch = Launch(sweep, snapshot.take(sweep.study.setup.paths.runs / ".snapshots"))
    outcome = launch.submit(chosen)
    print(f"submitted {outcome.number} jobs; matquant status {shlex.join(options.overrides)} shows them")
    if not outcome.left:
        return None
    then = "they are submitted as places become free" if options.wait else "launch again later, or with --wait"
    print(f"{in_words(outcome)}; {then}", flush=True)
    return Feeder(launch, outcome, at_work=len(sweep.of("queued", "running")) + outcome.number)


def _dry_run(study: Study, options: Options) -> int:
    """Prints everything that stands in the way, and then the plan and its cost all the same; the exit status."""
    setup = study.setup
    checks = (preflight.check_folders, preflight.check_tracking, preflight.check_tasks, gpus.check_gpus)
    problems = [sentence for check in checks for sentence in _said(partial(check, setup))]
    if problems:
        known = setup.model_copy(update={"readout": without_unknown(setup.readout)})
        study = replace(study, setup=known)
    try:
        sweep = _look_if_possible(study, options)
        plan = show_plan(sweep, options.wants, is_dry=options.dry_run, whole=options.show_all)
    except UserError as error:  # the first problem is the likely reason
        raise UserError(problems[0] if problems else str(error)) from error
    if not problems:
        problems += _said(lambda: _require_room(sweep, plan.chosen))
    for problem in problems:
        print(f"error: {problem}")
    print(f"dry run: nothing was submitted; the plan: {plan.cost}")
    return MISTAKE if plan.refused or problems else 0


def _said(check: Callable[[], object]) -> Iterator[str]:
    """The sentence of a check, if it has one to say."""
    try:
        check()
    except UserError as error:
        yield str(error)


def _require_room(sweep: Sweep, chosen: Iterable[Item]) -> None:
    preflight.check_room((item.cell, sweep.study.setup) for item in chosen)


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


def _wait(study: Study, options: Options, feeder: Feeder | None) -> int:
    """Stays until no job of the study is waiting, running or to be submitted; the exit status."""
    while True:
        try:
            sweep = _look(study, options)
        except UserError as error:  # a controller that restarts is no reason to end a wait of days
            print(f"{error}; asking again", file=sys.stderr)
        else:
            left = feeder is not None and _feed(study, options, feeder, sweep)
            if not left and not sweep.of("queued", "running"):
                cancel_what_waits_in_vain(item for item in sweep.of("missing") if sweep.waits_in_vain(item))
                return _conclude(sweep, options)
        time.sleep(5)


def _feed(study: Study, options: Options, feeder: Feeder, sweep: Sweep) -> bool:
    """Submits jobs for which there may be a place now; True if there is anything left to submit or to look at."""

    def waiting(sweep: Sweep) -> Sequence[Item]:
        return feeder.waiting(without_orphans(sweep, [item for item in sweep.items if options.wants(item)]))

    if not waiting(sweep) or not feeder.is_due(sweep):
        return bool(waiting(sweep))
    with _one_launcher(study.setup):
        try:
            sweep = _look(study, options)
        except UserError:  # SLURM does not answer now, and is asked again
            return True
        now = waiting(sweep)
        outcome = feeder.feed(sweep, now) if now else None
    if outcome is not None and outcome.number:
        print(f"submitted {outcome.number} more jobs; {len(now) - outcome.number} are left", flush=True)
    return True


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
    lock = FileLock(setup.paths.runs / ".launch.lock", mode=SHARED)
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
