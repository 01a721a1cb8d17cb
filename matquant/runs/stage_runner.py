"""Runs stages of a cell: in one process at a time, without leftovers, with a true status and one tracker.

The work of a stage is passed in.  Of several ranks the main one locks, reports and tracks; the others only help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from matquant.errors import UserError
from matquant.parallel.ranks import num_ranks
from matquant.runs.files import remove_leftovers
from matquant.runs.folder import RunDir
from matquant.runs.status import Beat
from matquant.runs.tracking import Tracker

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """One stage as the runner sees it."""

    stage: str
    """The name of its lock and of its status."""
    do: Callable[[Tracker, Beat], object]
    is_to_do: Callable[[], bool]
    """Called when the turn of the stage has come."""
    is_needed: bool = True
    """False if the stages behind it go on even after it has raised UserError."""
    help: Callable[[], object] | None = None
    """The part of the other ranks, if the stage has one."""
    timed: Callable[[], AbstractContextManager[object]] = nullcontext


def run_alone(
    run: RunDir,
    works: Sequence[Work],
    *,
    is_wanted: Callable[[], bool],
    leftovers: Iterable[Path],
    open_tracker: Callable[[], AbstractContextManager[Tracker]],
) -> None:
    """Does the work of some stages of a cell, one after the other, while their locks are held.

    `is_wanted` is asked before a lock is waited for, and again when all are held: another process may have done
    everything meanwhile.  `leftovers` are the folders to clean; `open_tracker` is called when the first stage starts.
    Where later stages go on after a UserError, the first UserError is raised at the end.
    """
    if not is_main():
        _help(works)
        return
    if not is_wanted():
        agreed(False)
        return
    with ExitStack() as held:
        for work in works:
            held.enter_context(run.alone(work.stage))
        if not agreed(is_wanted()):
            return
        for folder in leftovers:
            remove_leftovers(folder)
        tracker: Tracker | None = None
        refused: list[UserError] = []
        for work in works:
            with _kept(refused, unless=work.is_needed), work.timed():
                if not _is_to_do(work):
                    continue
                with run.stage(work.stage) as reporter:
                    if tracker is None:
                        tracker = held.enter_context(open_tracker())
                    work.do(tracker, reporter.beat)
        if refused:
            raise refused[0]


@contextmanager
def _kept(refused: list[UserError], *, unless: bool) -> Iterator[None]:
    """Keeps a UserError for later, unless it is to be raised at once."""
    try:
        yield
    except UserError as error:
        if unless:
            raise
        refused.append(error)


def _is_to_do(work: Work) -> bool:
    return work.is_to_do() if work.help is None else agreed(work.is_to_do())


def _help(works: Sequence[Work]) -> None:
    """The part of a rank that is not the main one: the main rank tells it what there is to do."""
    if not agreed(False):
        return
    for work in works:
        if work.help is not None and agreed(False):
            work.help()


def is_main() -> bool:
    """True for the process that writes and prints: the only one, or the main one of several ranks."""
    if num_ranks() == 1:
        return True
    from matquant.parallel.distributed import world  # imports torch, which a process that is alone may not need

    return world().is_main


def agreed(value: T) -> T:
    """The answer of the main one of several ranks; of a process that is alone its own."""
    if num_ranks() == 1:
        return value
    from matquant.parallel.distributed import world

    return world().broadcast(value)
