"""The objectives of a cell as numbers, read from its results: what a sweeper is told about a point."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.asked import asked_tasks
from evaluation.protocol import directions, protocols
from evaluation.results.metrics import LOG_PPLX, TASK_AVG, headline_metric, higher_is_better, is_fraction
from evaluation.results.store import Key, Result, ResultStore
from matquant.config.cell import Cell
from matquant.config.goal import BITS, Goal
from matquant.config.setup import Readout
from matquant.config.study import Study
from matquant.errors import UserError


def values_of(study: Study) -> list[float]:
    """The objectives of a point, in their order; UserError where a result is missing.

    Several cells of one point are seeds, and count as their mean.  Accuracies are fractions.
    """
    return [
        sum(found) / len(found)
        for goal in study.goals
        if (found := [_value(goal, cell, study) for cell in study.cells])
    ]


def check_goals(study: Study) -> None:
    """Refuses an objective that is a name of several tasks, such as a tag: it has no score of its own."""
    asked = asked_tasks(study.setup.readout)
    single = {LOG_PPLX, TASK_AVG, *BITS, *asked.leaves, *asked.groups}
    for goal in study.goals:
        if goal.task not in single:
            raise UserError(
                f"objective={goal}: {goal.task} is a name of several tasks and has no score of its own; choose "
                f"{TASK_AVG}, or name one task in readout.tasks and here"
            )


def are_better_high(study: Study) -> list[bool]:
    """True for each objective of a study that is better the higher it is."""
    return [_is_better_high(goal, study.setup.readout) for goal in study.goals]


def _is_better_high(goal: Goal, readout: Readout) -> bool:
    if goal.task in BITS:
        return False
    said = directions(readout).get(goal.task, {})
    metric = goal.metric or headline_metric([goal.task] if goal.task in (LOG_PPLX, TASK_AVG) else said)
    return metric is None or higher_is_better(metric, said)


def as_returned(values: Sequence[float]) -> float | list[float] | None:
    """The values in the form that a sweeper reads: one number, or a list of several."""
    return None if not values else values[0] if len(values) == 1 else list(values)


def _value(goal: Goal, cell: Cell, study: Study) -> float:
    readout, store = study.setup.readout, ResultStore(study.setup.paths.results)
    plan, wanted = str(goal.plan_of(cell, readout)), protocols(readout, add_bos=cell.sets_bos)
    averaged = list(asked_tasks(readout).averaged)
    tasks = averaged if goal.task == TASK_AVG else list(wanted) if goal.task in BITS else [goal.task]
    results = [_result(store, Key(cell.id, plan, task, wanted[task]), goal) for task in tasks]
    if goal.task == "effective_bits":
        return results[0].effective_bits
    if goal.task in BITS:
        return results[0].overhead[goal.task]
    if goal.task == TASK_AVG:
        shares = [
            result.metrics[metric]
            for result in results
            if (metric := headline_metric(result.metrics)) is not None and is_fraction(metric)
        ]
        if not shares:
            named = ", ".join(asked_tasks(readout).shown)
            raise UserError(f"objective={goal}: no task has a share of right answers; name one task of {named}")
        return sum(shares) / len(shares)
    (result,) = results
    metric = goal.metric or headline_metric(result.metrics)
    if metric is None or metric not in result.metrics:
        known = ", ".join(name for name in result.metrics if not name.endswith("_stderr"))
        raise UserError(f"objective={goal}: {goal.task} has no metric {metric}; choose one of {known}")
    return result.metrics[metric]


def _result(store: ResultStore, key: Key, goal: Goal) -> Result:
    try:
        return store.read(store.path(key))
    except (OSError, ValueError) as error:
        raise UserError(f"objective={goal}: {key.task} of {key.cell_id} at {key.plan} is not measured") from error
