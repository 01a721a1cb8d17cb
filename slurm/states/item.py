"""One stage of one cell, and its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from evaluation.stages import SEARCH, Kind, Stage
from matquant.config.cell import Cell
from matquant.notation import Plan
from matquant.runs.status import Reason, Status
from slurm.records import Submission
from slurm.states.known import QueuedJob
from slurm.states.reasons import RULES

KINDS: tuple[Kind, ...] = get_args(Kind)
ItemState = Literal["done", "running", "queued", "failed", "missing"]
STATES: tuple[ItemState, ...] = ("done", "running", "queued", "failed", "missing")


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
    """The last report; of a running item, that of the process at work and of no earlier one."""
    submission: Submission | None = None
    job: QueuedJob | None = None
    """The item's job, while it is in SLURM's queue; of a missing or failed item, a job that cannot start."""
    owner: str | None = None
    """The user whose process or job is at work, if it is another one."""
    way: str = ""
    """The way in which a failure came: two that are alike are taken for the same fault."""
    remedy: str = ""
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

    @property
    def ended(self) -> tuple[str, ...]:
        """The ways in which its jobs have ended, this failure included; the last two are enough."""
        earlier = () if self.submission is None else self.submission.ended
        return (*earlier, self.way)[-2:] if self.state == "failed" and self.way else earlier

    @property
    def has_ended_so_twice(self) -> bool:
        return self.state == "failed" and len(self.ended) == 2 and self.ended[0] == self.ended[1] == self.way

    @property
    def goes_on_unasked(self) -> bool:
        """True for a failure after which the next launch tries again."""
        if self.reason is None:
            return False
        again = RULES[self.reason].again
        return again == "always" or (again == "once more" and not self.has_ended_so_twice)

    def goes_on_if_asked(self, how: Literal["some", "all"] | None) -> bool:
        """True for a failure that --retry-failed, or --retry-failed=all, submits again."""
        return how == "all" or (how == "some" and self.reason is not None and RULES[self.reason].again != "insisted")

    @property
    def what_to_do(self) -> str:
        """The remedy for a failure."""
        if self.owner is not None and self.job is not None:
            return f"job {self.job.job_id} is {self.owner}'s, who alone can release or cancel it"
        if self.has_ended_so_twice and not self.goes_on_unasked and self.reason is not None:
            return "it has ended in this way twice: read the log, then --retry-failed"
        return self.remedy or ("" if self.reason is None else RULES[self.reason].remedy)
