"""Compares two read-outs on the documents that both were measured on.

Prints for each task, for Task Avg and for log perplexity the difference (first minus second), its standard error, and a
p-value: McNemar's exact test for one task, a paired bootstrap for the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.frame.names import TASK_NAMES
from analysis.frame.significance import TASK_AVG, differences, document_values
from evaluation.results.store import LOG_PPLX, ResultStore, protocol_id
from matquant.command.parsing import parse
from matquant.errors import UserError

DocumentValues = dict[tuple[str, str], np.ndarray]
"""The value of each document, by task and protocol."""


def measured(name: str, store: ResultStore) -> DocumentValues:
    """Everything that was measured on CELL:PLAN; UserError if there is nothing."""
    cell_id, _, plan = name.rpartition(":")
    found: DocumentValues = {}
    for result in store.results(cell_id) if cell_id else ():
        if result.plan == plan:
            values = document_values(store.documents(result.key))
            if values is not None:
                found[result.task, protocol_id(result.protocol)] = values
    if not found:
        there = store.readouts()
        hint = f"there are {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else "there are none"
        raise UserError(f"no results of {name} in {store.folder}; write CELL:PLAN, {hint}")
    return found


def difference_lines(ours: DocumentValues, theirs: DocumentValues) -> list[str]:
    """A line for each task that both were measured on in the same way."""
    common = {key[0]: key for key in ours if key in theirs}
    if not common:
        raise UserError("the two have no task under the same protocol; measure both with the same readout.* overrides")
    found = differences(
        {task: ours[key] for task, key in common.items()}, {task: theirs[key] for task, key in common.items()}
    )
    lines = [f"{'task':14} {'first':>9} {'second':>9} {'difference':>18} {'p':>8}  documents  test"]
    for task, difference in found.items():
        scale, form = (1, ".3f") if task == LOG_PPLX else (100, ".1f")
        if task == TASK_AVG:
            means = [
                np.mean([side[common[one]].mean() for one in common if one != LOG_PPLX]) for side in (ours, theirs)
            ]
        else:
            means = [side[common[task]].mean() for side in (ours, theirs)]
        values = " ".join(f"{scale * mean:9{form}}" for mean in means)
        gap = f"{scale * difference.mean:+{form}} ± {scale * difference.stderr:{form}}"
        name = "Task Avg" if task == TASK_AVG else TASK_NAMES.get(task, task)
        lines.append(
            f"{name:14} {values} {gap:>18} {difference.p_value:8.2g}  {difference.num_documents:9d}  {difference.test}"
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    given = parse("compare", arguments)
    store = ResultStore(given.results)
    try:
        first, second = measured(given.first, store), measured(given.second, store)
    except ValueError as error:  # a damaged result; the message says what to delete
        raise UserError(str(error)) from error
    print("\n".join(difference_lines(first, second)))
