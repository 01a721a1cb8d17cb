"""The score of a group of tasks, by lm-eval's own aggregation: weighted by size or not, with its standard error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Protocol

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig

from evaluation.lm_eval_patches import GROUPS, quiet_lm_eval
from evaluation.results.metrics import is_error, is_metric
from evaluation.results.store import Documents, Result
from evaluation.results.store import Protocol as Facts
from evaluation.sources.outline import TaskGroup
from evaluation.tasks.scoring import scalar_metrics
from matquant.errors import UserError
from matquant.runs.provenance import provenance


class Measured(Protocol):
    """The measurement of a task: its metrics by our names, and over how many documents."""

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def num_documents(self) -> int: ...


class _Named(ConfigurableTask):
    """A task without documents: a group asks its tasks for their names alone."""

    def __init__(self, name: str) -> None:
        self._config = TaskConfig(task=name, output_type="multiple_choice")


def group_metrics(group: TaskGroup, scores: Mapping[str, Measured]) -> dict[str, float]:
    """The metrics of a group from the results of its tasks, by name; UserError if no task has one of its metrics."""
    GROUPS.require()
    theirs = Group.from_config({"group": group.name, "aggregate_metric_list": [dict(rule) for rule in group.rules]})
    for name in scores:
        theirs.add(_Named(name))
    with quiet_lm_eval():
        metrics = scalar_metrics(theirs.aggregate({name: _as_lm_eval(result) for name, result in scores.items()}))
    if not metrics:
        asked = ", ".join(str(rule["metric"]) for rule in group.rules)
        there = ", ".join(dict.fromkeys(name for one in scores.values() for name in one.metrics if is_metric(name)))
        raise UserError(f"group {group.name} has a rule for {asked}, and its tasks measure {there}; mend its yaml")
    return metrics


def _as_lm_eval(result: Measured) -> Any:
    """A result's numbers under lm-eval's names: `acc` is `acc,none` there."""
    numbers = {name if "," in name else f"{name},none": value for name, value in result.metrics.items()}
    return {**numbers, "sample_len": result.num_documents}


def group_documents(group: TaskGroup, scores: Mapping[str, Result], documents: Mapping[str, Documents]) -> Documents:
    """The documents of all tasks in one list, numbered anew; metrics whose mean over them is not the group's are out.

    Where tasks count alike whatever their size (`weight_by_size: false`), no mean over documents is the score.
    """
    unequal = {str(rule["metric"]) for rule in group.rules if not rule.get("weight_by_size", True)}
    columns = dict.fromkeys(
        column
        for rule in group.rules
        for of_task in documents.values()
        for column in of_task
        if column.partition(",")[0] == rule["metric"] and rule["metric"] not in unequal
    )
    numbers, rows = count(), {column: list[Any]() for column in ("doc_id", *columns)}
    for name, result in scores.items():
        of_task, length = documents[name], result.num_documents
        rows["doc_id"] += [next(numbers) for _ in range(length)]
        for column in columns:
            rows[column] += of_task.get(column) or [None] * length
    return rows


def group_result(
    group: TaskGroup, protocol: Facts, scores: Mapping[str, Result], documents: Mapping[str, Documents]
) -> tuple[Result, Documents]:
    """The result of a group, of the same weights as those of its tasks."""
    start, some = time.monotonic(), next(iter(scores.values()))
    together = group_documents(group, scores, documents)
    metrics = group_metrics(group, scores)
    seconds = sum(float(result.provenance.get("seconds", 0.0)) for result in scores.values())
    return (
        Result(
            cell_id=some.cell_id,
            plan=some.plan,
            task=group.name,
            protocol=dict(protocol),
            metrics={name: metrics[name] for name in sorted(metrics, key=is_error)},
            num_documents=len(together["doc_id"]),
            effective_bits=some.effective_bits,
            overhead=some.overhead,
            checkpoint=some.checkpoint,
            provenance={
                **provenance(device=str(some.provenance.get("device")), seconds=time.monotonic() - start),
                "seconds_of_tasks": seconds,
                "inside": group.inside,
            },
            sources=some.sources,
        ),
        together,
    )


def ordered(group: TaskGroup, results: Sequence[Result]) -> dict[str, Result]:
    """The results of a group's tasks by name, in the group's order."""
    by_name = {result.task: result for result in results}
    return {leaf.name: by_name[leaf.name] for leaf in group.leaves}
