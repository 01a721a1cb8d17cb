"""The rest of a launch: jobs for which SLURM had no place are submitted as places become free."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from matquant.errors import UserError
from slurm import queue
from slurm.plan import Item, Sweep
from slurm.sbatch.refusals import keys_of, kind_of
from slurm.submit import Launch, Outcome

AGAIN_S = 60.0
"""Seconds after which a full queue is asked again though none of our jobs has ended: others end, and limits change."""


def in_words(outcome: Outcome) -> str:
    """A sentence about the jobs that are left."""
    number, words = len(outcome.left), outcome.words
    if kind_of(words) == "silent":
        return f"SLURM did not answer about {number} more jobs ({words}); those that it took are found by their name"
    key = keys_of(words)
    return f"SLURM has no place for {number} more jobs now ({words}{'' if key == 'cluster.*' else f'; see {key}'})"


class Feeder:
    """Submits what a launch has left: as many jobs as have ended, or, where none has, one now and then."""

    def __init__(self, launch: Launch, outcome: Outcome, at_work: int) -> None:
        self.launch, self.keys = launch, {_key(item) for item in outcome.left}
        self.full_at, self.reach, self.again_at = at_work, 1, time.monotonic() + AGAIN_S

    def waiting(self, items: Iterable[Item]) -> Sequence[Item]:
        """Those of some items that are left."""
        return [item for item in items if _key(item) in self.keys]

    def is_due(self, sweep: Sweep) -> bool:
        """True if there may be a place now."""
        return self._free(sweep) > 0 or time.monotonic() >= self.again_at

    def feed(self, sweep: Sweep, waiting: Sequence[Item]) -> Outcome:
        """Submits as many as there may be places for; UserError if there never will be one."""
        tried = waiting[: max(self._free(sweep), self.reach)]
        self.launch.sweep = sweep
        outcome = self.launch.submit(tried)
        self.keys -= {_key(item) for item in tried} - {_key(item) for item in outcome.left}
        self.full_at = _at_work(sweep) + outcome.number
        if not outcome.left:  # there may be more places: another attempt soon, with twice as many
            self.reach, self.again_at = 2 * self.reach, time.monotonic()
            return outcome
        self.reach, self.again_at = 1, time.monotonic() + AGAIN_S
        if not self.full_at and "Submit" in outcome.words and "Grp" not in outcome.words and not queue.jobs_in_queue():
            raise UserError(
                f"{in_words(outcome)}, and none of yours is in its queue; raise the limit, or choose another with "
                f"{keys_of(outcome.words)}"
            )
        return outcome

    def _free(self, sweep: Sweep) -> int:
        return max(0, self.full_at - _at_work(sweep))


def _at_work(sweep: Sweep) -> int:
    """The number of a study's jobs in the queue."""
    return len(sweep.of("queued", "running"))


def _key(item: Item) -> tuple[str, str]:
    return item.cell_id, item.stage.name
