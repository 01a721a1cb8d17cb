"""An objective: the number of a cell that a sweep is about, such as `int2/log_pplx`.

A name is PLAN/METRIC: a read-out, and log_pplx, task_avg, a task of the read-out (by the metric that stands for it, or
by another as TASK/METRIC), or a count of bits.  Every mistake in it is found before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matquant.config.cell import Cell
from matquant.config.setup import Readout
from matquant.config.syntax.files import nearest
from matquant.errors import UserError
from matquant.notation import Plan

LOG_PPLX, TASK_AVG = "log_pplx", "task_avg"
BITS = ("effective_bits", "model_bits")
"""Counts of bits: the paper's, and one that has scales and zeros too."""


@dataclass(frozen=True)
class Goal:
    """One objective: a plan, a task or a number over all tasks, and a metric if not the one that stands for it."""

    plan: Plan
    task: str
    metric: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, (str(self.plan), self.task, self.metric)))

    def plan_of(self, cell: Cell, readout: Readout) -> Plan:
        """The plan of a cell that is meant: codes that were trained with the overflow bucket are read with it."""
        return readout.plan_of(cell, self.plan)


def goals_of(typed: str | Sequence[str] | None, cells: Sequence[Cell], readout: Readout) -> tuple[Goal, ...]:
    """The objectives of a command line; UserError for one that its cells do not have."""
    texts = [typed] if isinstance(typed, str) else typed or []
    goals = tuple(dict.fromkeys(_goal(text, readout) for text in texts))
    if goals and len({cell.model_copy(update={"seed": 0}).id for cell in cells}) > 1:
        raise UserError(
            f"objective={texts[0]} is a number of one cell, and these are {len(cells)} cells; choose one with base=... "
            "bits=..., or leave objective out"
        )
    for goal in goals:
        for cell in cells:
            known = list(map(str, readout.plans_of(cell)))
            if str(goal.plan_of(cell, readout)) not in known:
                raise UserError(
                    f"objective={goal}: {cell.id} is not read at {goal.plan}; choose one of {', '.join(known)}"
                )
    return goals


def _goal(text: str, readout: Readout) -> Goal:
    # A plan file's path has slashes of its own.
    start, json, rest = text.partition(".json/")
    label, _, rest = (f"{start}.json", "", rest) if json else text.partition("/")
    task, _, metric = rest.partition("/")
    names = _names(readout)
    if not task or metric.startswith("/") or text.endswith("/"):
        raise UserError(f"objective={text} is not PLAN/METRIC; write a plan and a metric: objective=int2/{names[0]}")
    try:
        plan = Plan.parse(label)
    except ValueError as error:
        raise UserError(f"objective={text}: {error}") from error
    if task not in names:
        if task == LOG_PPLX:
            raise UserError(f"objective={text}: perplexity=null measures none; choose perplexity=embedded")
        missing = "" if readout.tasks or task != TASK_AVG else "no task is measured; "
        raise UserError(
            f"objective={text}: {missing}{task} is not measured; {nearest(task, names, cutoff=0.5)}"
            f"choose one of {', '.join(names)}"
        )
    if metric and task in (TASK_AVG, *BITS):
        raise UserError(f"objective={text}: {task} is a single number; write objective={plan}/{task}")
    return Goal(plan, task, metric or None)


def _names(readout: Readout) -> list[str]:
    """Everything behind a plan that a read-out measures."""
    return [
        *([LOG_PPLX] if readout.perplexity is not None else []),
        *([TASK_AVG] if readout.tasks else []),
        *(task for task in readout.tasks if task != LOG_PPLX),
        *BITS,
    ]
