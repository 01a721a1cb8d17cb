"""Compares two read-outs on the documents that both were measured on.

Prints for each task, for Task Avg and for log perplexity the difference (first minus second), its standard error, and a
p-value, by the tests of `analysis.frame.significance`.  Where both were measured under several protocols, each of them
has lines of its own: numbers that were measured in different ways stand in no line together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from analysis.frame.measures import TESTED_MEASURES
from analysis.frame.names import TASK_NAMES
from analysis.frame.significance import Difference, differences, document_values
from evaluation.results.flips import flips_of
from evaluation.results.metrics import LOG_PPLX, TASK_AVG, headline_metric, is_fraction
from evaluation.results.readouts import grid_of, model_of
from evaluation.results.store import Protocol, ResultStore, protocol_id
from evaluation.sources.table import SPLITS
from matquant.checkout import PROJECT, left_in_the_clone
from matquant.command.parsing import parse
from matquant.errors import UserError


class MeasuredTask(NamedTuple):
    """The value of each document of one result, with its metric and its protocol."""

    values: np.ndarray
    metric: str
    protocol: Protocol
    inside: tuple[str, ...] = ()
    """The tasks of a group."""
    tokens: str = ""
    """Of text: the digest of its tokens; results of earlier versions have none."""
    model: str = ""
    """Of text: the name of the model."""


OTHER_TOKENS = "log pplx is not compared: the two models cut the text into other tokens, and nats are of a token"

OF_A_TASK = ("task", "data", "yaml", "members")
"""The facts of a protocol that each task has for itself."""

Measured = Mapping[tuple[str, str], MeasuredTask]
"""Results by task and protocol."""


def measured(name: str, store: ResultStore) -> Measured:
    """Everything that was measured on CELL:PLAN; UserError if there is nothing."""
    cell_id, _, plan = name.rpartition(":")
    model = model_of(store, cell_id)
    found: dict[tuple[str, str], MeasuredTask] = {}
    for result in store.results(cell_id) if cell_id else ():
        metric = headline_metric(result.metrics)
        if result.plan == plan and metric is not None:
            values = document_values(store.documents(result.key), metric)
            cut_into = (str(result.provenance.get("tokens", "")), model) if result.task == LOG_PPLX else ()
            if values is not None:
                inside = tuple(result.provenance.get("inside", ()))
                of_task = MeasuredTask(values, metric, result.protocol, inside, *cut_into)
                found[result.task, protocol_id(result.protocol)] = of_task
            for measure in TESTED_MEASURES if result.task == LOG_PPLX else ():
                values = document_values(store.documents(result.key), measure)
                if values is not None:
                    of_text = MeasuredTask(values, measure, result.protocol, (), *cut_into)
                    found[measure, protocol_id(result.protocol)] = of_text
    if not found:
        there = store.readouts()
        hint = f"there are {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else "there are none"
        if not there and left_in_the_clone(results=store.folder) is not None:
            hint = f"there are some in the clone: --results {PROJECT / store.folder}"
        raise UserError(f"no results of {name} in {store.folder.absolute()}; write CELL:PLAN, {hint}")
    return found


def difference_lines(ours: Measured, theirs: Measured) -> list[str]:
    """A line for each task that both were measured on in the same way.

    Nats a token of two tokenizers are two quantities, of other blocks of text.
    """
    both = [key for key in ours if key in theirs]
    common = [key for key in both if _of_the_same_tokens(ours[key], theirs[key])]
    if both and not common:
        raise UserError(f"the two have only text in common. {OTHER_TOKENS}; measure both on tasks, by readout.tasks=")
    if not common:
        raise UserError("the two have no task under the same protocol; measure both with the same readout.* overrides")
    labels = _labels({key: ours[key].protocol for key in common})
    lines = [f"{'task':14} {'first':>9} {'second':>9} {'difference':>18} {'p':>8}  documents  test"]
    for label in dict.fromkeys(labels.values()):
        keys = {task: (task, found) for task, found in common if labels[task, found] == label}
        if label:
            lines.append(f"measured with {label}:")
        lines += _lines({t: ours[key] for t, key in keys.items()}, {t: theirs[key] for t, key in keys.items()})
    return lines if len(common) == len(both) else [*lines, f"{OTHER_TOKENS}."]


def _of_the_same_tokens(ours: MeasuredTask, theirs: MeasuredTask) -> bool:
    """True for tasks, and for text that was cut into the same tokens; results of earlier versions tell by the model."""
    return ours.tokens == theirs.tokens if ours.tokens and theirs.tokens else ours.model == theirs.model


def grid_lines(first: str, second: str, store: ResultStore) -> list[str]:
    """The grid of both, or the grid of each where they differ: CELL:PLAN as for `measured`."""
    ours, theirs = (grid_of(store, name.rpartition(":")[0]) for name in (first, second))
    if ours == theirs or not (ours and theirs):
        return [f"grid: {ours or theirs}"] if ours or theirs else []
    return [f"grids differ: {ours} (first); {theirs} (second)"]


def _labels(protocols: Mapping[tuple[str, str], Protocol]) -> dict[tuple[str, str], str]:
    """The facts in which protocols differ; empty where all are alike.

    Tasks have documents of their own, but share the rest: Task Avg is a mean over one number of documents.
    """
    found = {}
    for key, protocol in protocols.items():
        facts = _facts(protocol)
        same_task = [_facts(other) for (task, _), other in protocols.items() if task == key[0]]
        is_text = protocol.get("task") == LOG_PPLX
        same_kind = [_facts(other) for other in protocols.values() if (other.get("task") == LOG_PPLX) == is_text]
        differing = [
            name
            for name in facts
            if _differ(name, same_task if name in OF_A_TASK else same_kind) or facts[name] == "tuning"
        ]
        found[key] = ", ".join(f"{name} {facts[name]}" for name in differing)
    return found


def _differ(name: str, protocols: Sequence[Mapping[str, object]]) -> bool:
    return len({str(facts.get(name)) for facts in protocols}) > 1


def _facts(protocol: Protocol) -> dict[str, object]:
    """The facts of a protocol; a split instead of the documents that it is of, so that tasks share it."""
    split = str(protocol.get("data")).rpartition("/")[2]
    part = {"part": "test"} if protocol.get("task") == LOG_PPLX else {}
    return {**part, **protocol, **({"data": f".../{split}"} if split in SPLITS else {})}


def _lines(ours: Mapping[str, MeasuredTask], theirs: Mapping[str, MeasuredTask]) -> Iterator[str]:
    averaged = counted_once(ours)
    found = differences(
        {task: of_task.values for task, of_task in ours.items()},
        {task: of_task.values for task, of_task in theirs.items()},
        averaged,
    )
    for task, difference in found.items():
        of_line = averaged if task == TASK_AVG else [task]
        means = [float(np.mean([side[one].values.mean() for one in of_line])) for side in (ours, theirs)]
        metric = TASK_AVG if task == TASK_AVG else ours[task].metric
        yield _line(task, metric, means, difference) + _flips(ours.get(task), theirs.get(task))


def counted_once(of_task: Mapping[str, MeasuredTask]) -> list[str]:
    """The tasks of Task Avg: shares of right answers, without the tasks of a group that is there, too."""
    repeated = {task for found in of_task.values() for task in found.inside}
    shares = (task for task, found in of_task.items() if is_fraction(found.metric) and task not in TESTED_MEASURES)
    return [task for task in shares if task not in repeated]


def _flips(ours: MeasuredTask | None, theirs: MeasuredTask | None) -> str:
    """`, right: 12 the first alone, 5 the second alone`, for a task of right and wrong answers."""
    if ours is None or theirs is None or ours.metric in TESTED_MEASURES:
        return ""
    found = flips_of(ours.values.tolist(), theirs.values.tolist())
    if found is None:
        return ""
    return f", right: {found.wrong_to_right} the first alone, {found.right_to_wrong} the second alone"


def _line(task: str, metric: str, means: Sequence[float], difference: Difference) -> str:
    scale, form = (100, ".1f") if is_fraction(metric) else (1, ".5f" if metric in TESTED_MEASURES else ".3f")
    values = " ".join(f"{scale * mean:9{form}}" for mean in means)
    gap = f"{scale * difference.mean:+{form}} ± {scale * difference.stderr:{form}}"
    usual = metric in ("acc", "acc_norm", TASK_AVG, LOG_PPLX, *TESTED_MEASURES)
    name = TASK_NAMES.get(task, task) + ("" if usual else f" {metric}")
    return f"{name:14} {values} {gap:>18} {difference.p_value:8.2g}  {difference.num_documents:9d}  {difference.test}"


def main(arguments: Sequence[str]) -> None:
    given = parse("compare", arguments)
    store = ResultStore(given.results)
    try:
        first, second = measured(given.first, store), measured(given.second, store)
    except ValueError as error:  # a damaged result; the message says what to delete
        raise UserError(str(error)) from error
    print("\n".join([*grid_lines(given.first, given.second, store), *difference_lines(first, second)]))
