"""Takes jobs back: those of a study that are one's own, and those that wait in vain."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress

from matquant.errors import UserError
from slurm import queue, wording
from slurm.plan import Item, Sweep


def cancel(sweep: Sweep, *, dry_run: bool) -> int:
    """Cancels the jobs of a study, or in a dry run prints how many."""
    at_work = [item for item in sweep.items if item.state in ("running", "queued") or item.job]
    mine = [item for item in at_work if item.owner is None]
    jobs = {item.job for item in mine if item.job is not None}
    here = [item.submission for item in mine if item.job is None and item.submission is not None]
    processes = [submission for submission in here if submission.is_mine and submission.process_is_alive()]
    if not dry_run:
        queue.cancel(jobs)
        # A launcher on this machine stops its workers; a worker without a launcher is stopped directly.
        for pid in {submission.living_launcher() or submission.pid for submission in processes}:
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
    would = "would cancel" if dry_run else "cancelled"
    print(f"{would} {len(jobs) + len(processes)} jobs; finished work is on disk, and a launch goes on from there")
    if others := len(mine) - len(jobs) - len(processes):
        print(f"{others} more are running that no launch started; stop them where they were started")
    if theirs := wording.owned(at_work):
        print(theirs)
    return 0


def cancel_what_waits_in_vain(items: Iterable[Item]) -> None:
    """Cancels the jobs of items that are missing or failed all the same: they wait in vain."""
    with suppress(UserError):  # they may go by themselves, and do no harm if they stay
        queue.cancel([item.job for item in items if item.job is not None and item.owner is None])
