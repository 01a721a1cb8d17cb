"""The stages of a cell, run by run.py one after the other or as jobs one by one: train, search, evaluate.

Imports neither torch nor lm-eval before a stage starts: a cell whose results are all there needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, assert_never

from evaluation.identity import require_same_sources
from evaluation.protocol import WHOLE, PlanShare, missing
from evaluation.results.store import ResultStore
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import Study
from matquant.disk import in_words
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.folder import RunDir
from matquant.runs.stage_runner import Work, is_main, run_alone
from matquant.runs.status import Beat, silent
from matquant.runs.tracking import NoTracker, Tracker, tracking
from matquant.runs.wandb_run import is_of_a_sweep
from matquant.search.request import found_plan

Kind = Literal["train", "search", "evaluate"]
Timed = Callable[[Kind], AbstractContextManager[object]]


@dataclass(frozen=True)
class Stage:
    """One stage of a cell; an evaluation may be that of a share of the plans."""

    kind: Kind
    share: PlanShare = WHOLE

    @property
    def name(self) -> str:
        """The name of its lock, its status and its job: evaluate, or evaluate-2of3."""
        return self.kind if self.share == WHOLE else f"{self.kind}-{self.share}"


TRAIN, SEARCH, EVALUATE = Stage("train"), Stage("search"), Stage("evaluate")


def has_searches(plans: Iterable[Plan]) -> bool:
    """True if a cell that is read at some plans has a stage that searches."""
    return any(plan.strategy is not None for plan in plans)


def to_search(cell: Cell, setup: Setup, gaps: Iterable[Plan]) -> tuple[Plan, ...]:
    """The plans with results missing that a search still has to find for the checkpoint that is there."""
    run = RunDir(setup.paths.runs, cell.id)
    searched = (plan for plan in gaps if plan.strategy is not None)
    return tuple(plan for plan in searched if found_plan(run, setup.readout, plan) is None)


def untimed(_: Kind) -> AbstractContextManager[object]:
    """The clock of stages that nobody times."""
    return nullcontext()


def run_cell(cell: Cell, setup: Setup, timed: Timed = untimed) -> None:
    """Does what is missing of a cell, all stages in one W&B run; a cell that lacks no result is left alone.

    A run of W&B's agent is told the results in any case: a sweep may try a cell that was measured before.
    """
    if is_main():
        require_same_sources([cell], setup)
    tracked: list[str] = []

    def open_tracker() -> AbstractContextManager[Tracker]:
        tracked.append(cell.id)
        return tracking(cell, setup, "cell")

    store = ResultStore(setup.paths.results)
    stages = (TRAIN, SEARCH, EVALUATE) if has_searches(setup.readout.plans_of(cell)) else (TRAIN, EVALUATE)
    with in_words(dict(setup.paths)):
        run_alone(
            RunDir(setup.paths.runs, cell.id),
            [_work(cell, setup, stage, timed) for stage in stages],
            is_wanted=lambda: bool(missing(cell, setup.readout, store)),
            leftovers=(setup.paths.runs / cell.id, setup.paths.results / cell.id),
            open_tracker=open_tracker,
        )
        if is_of_a_sweep() and is_main() and not tracked:
            from evaluation.evaluate import publish

            with open_tracker() as tracker:
                publish(cell, setup, tracker)


def check_agent(study: Study | None) -> None:
    """Refuses several cells where W&B's agent has started this process, as they would be one run; None: a multirun."""
    if not is_of_a_sweep() or (study is not None and (study.setup.tracking.kind != "wandb" or len(study.cells) == 1)):
        return
    number = "several" if study is None else len(study.cells)
    remedy = "leave out -m" if study is None else "choose one with base=... bits=..."
    raise UserError(f"`wandb agent` tries one cell a run, and this command has {number}; in the sweep's yaml, {remedy}")


def run_stage(cell: Cell, setup: Setup, stage: Stage) -> None:
    """Does one stage of a cell; a second process on the same stage waits for the first and finds nothing to do."""
    if is_main():
        require_same_sources([cell], setup)
    with in_words(dict(setup.paths)):
        run_alone(
            RunDir(setup.paths.runs, cell.id),
            [_work(cell, setup, stage, untimed)],
            is_wanted=lambda: True,
            leftovers=_leftovers(cell, setup, stage),
            open_tracker=lambda: _tracking(cell, setup, stage),
        )


def _work(cell: Cell, setup: Setup, stage: Stage, timed: Timed) -> Work:
    """A stage for the runner; its status says in words that a disk is full."""
    work = _plain_work(cell, setup, stage, timed)

    def do(tracker: Tracker, beat: Beat) -> None:
        with in_words(dict(setup.paths)):
            work.do(tracker, beat)

    return replace(work, do=do)


def _plain_work(cell: Cell, setup: Setup, stage: Stage, timed: Timed) -> Work:
    around = partial(timed, stage.kind)
    match stage.kind:
        case "train":
            return Work(
                stage.name,
                partial(_train, cell, setup),
                lambda: _to_train(cell, setup),
                help=lambda: _train(cell, setup, NoTracker(), silent),
                timed=around,
            )
        case "search":
            return Work(
                stage.name,
                lambda _, beat: _search(cell, setup, beat),
                lambda: bool(_to_search_now(cell, setup)),
                is_needed=False,
                timed=around,
            )
        case "evaluate":
            measure = partial(_evaluate, cell, setup, stage.share)
            return Work(stage.name, measure, lambda: True, is_needed=False, timed=around)
        case _:
            assert_never(stage.kind)


def _leftovers(cell: Cell, setup: Setup, stage: Stage) -> Iterable[Path]:
    match stage.kind:
        case "train":
            return (setup.paths.runs / cell.id,)
        case "search":  # not the whole folder: others may train there
            run = RunDir(setup.paths.runs, cell.id)
            return (run.plans, run.searches)
        case "evaluate":
            return (setup.paths.results / cell.id,)
        case _:
            assert_never(stage.kind)


def _tracking(cell: Cell, setup: Setup, stage: Stage) -> AbstractContextManager[Tracker]:
    """The W&B run of one stage; a search has nothing to log.

    Several jobs cannot write one run at the same time.  Where jobs share the plans of a cell, the last one to finish
    logs everything.
    """
    match stage.kind:
        case "search":
            return nullcontext(NoTracker())
        case "train" | "evaluate":
            return tracking(cell, setup, stage.kind) if stage.share == WHOLE else nullcontext(NoTracker())
        case _:
            assert_never(stage.kind)


def _to_train(cell: Cell, setup: Setup) -> bool:
    from matquant.training.train import to_train

    return to_train(cell, setup)


def _train(cell: Cell, setup: Setup, tracker: Tracker, beat: Beat) -> None:
    from matquant.training.train import train

    train(cell, setup, tracker, beat)


def _to_search_now(cell: Cell, setup: Setup) -> tuple[Plan, ...]:
    return to_search(cell, setup, missing(cell, setup.readout, ResultStore(setup.paths.results)))


def _search(cell: Cell, setup: Setup, beat: Beat) -> None:
    from matquant.search.stage import search

    search(cell, setup, _to_search_now(cell, setup), beat)


def _evaluate(cell: Cell, setup: Setup, share: PlanShare, tracker: Tracker, beat: Beat) -> None:
    from evaluation.evaluate import evaluate, publish

    evaluate(cell, setup, tracker, share, beat)
    store = ResultStore(setup.paths.results)
    if share != WHOLE and not missing(cell, setup.readout, store):
        with tracking(cell, setup, "evaluate") as last:
            publish(cell, setup, last)
