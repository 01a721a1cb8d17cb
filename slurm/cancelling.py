"""Takes jobs back: those of a study that are one's own, and those that wait in vain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from matquant.errors import UserError
from slurm import queue, wording
from slurm.interrupting import stop_jobs, stop_launchers
from slurm.plan import Item, Sweep
from slurm.records import Submission


def cancel(study: Sweep, chosen: Callable[[str], bool], *, dry_run: bool) -> int:
    """Cancels the jobs of the chosen cells, or in a dry run prints how many; the exit status."""
    sweep = study.only(chosen)
    at_work = [item for item in sweep.items if item.state in ("running", "queued") or item.job]
    mine = [item for item in at_work if item.owner is None]
    jobs = {item.job for item in mine if item.job is not None}
    here = [item.submission for item in mine if item.job is None and item.submission is not None]
    processes = [submission for submission in here if submission.is_mine and submission.process_is_alive()]
    living: list[Submission] = []
    if not dry_run:
        queue.cancel(jobs)
        # A launcher that has more to do than the chosen cells goes on.
        is_whole = all(item.state == "done" for item in study.items if not chosen(item.cell_id))
        _stop(processes, with_launchers=is_whole)
        living = [submission for submission in processes if submission.process_is_alive()]
    would, number = "would cancel" if dry_run else "cancelled", len(jobs) + len(processes) - len(living)
    print(f"{would} {number} jobs; finished work is on disk, and a launch goes on from there")
    for submission in living:
        print(f"process {submission.pid} was killed and still runs: it waits for a disk or a device; look again later")
    if not dry_run:
        for launcher in sorted({pid for one in processes if (pid := one.living_launcher()) is not None}):
            print(f"the launcher, process {launcher}, goes on with its other jobs; --cancel without --only stops it")
    if others := len(mine) - len(jobs) - len(processes):
        print(f"{others} more are running that no launch started; stop them where they were started")
    if theirs := wording.owned(at_work):
        print(theirs)
    return 1 if living else 0


def _stop(processes: Sequence[Submission], *, with_launchers: bool) -> None:
    """Stops jobs of this machine: through their launchers, which start no others then, or each by itself."""
    if not processes:
        return
    print(f"stopping {len(processes)} jobs", file=sys.stderr)
    controllers = {submission.pid for submission in processes if submission.pid is not None}
    if with_launchers:
        launchers = {pid for submission in processes if (pid := submission.living_launcher()) is not None}
        controllers |= set(stop_launchers(launchers))  # also those that a launcher without ears has left
    stop_jobs(controllers)


def cancel_what_waits_in_vain(items: Iterable[Item]) -> None:
    """Cancels the jobs of items that are missing or failed all the same: they wait in vain."""
    with suppress(UserError):  # they may go by themselves, and do no harm if they stay
        queue.cancel([item.job for item in items if item.job is not None and item.owner is None])
