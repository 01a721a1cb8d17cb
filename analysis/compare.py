"""Compares two read-outs on the documents that both were measured on.

    python -m analysis.compare CELL:PLAN CELL:PLAN [--results results]

Prints for each task, for Task Avg and for log perplexity the difference (first minus second), its standard error, and a
p-value: McNemar's exact test for one task, a paired bootstrap for the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.names import TASK_NAMES
from analysis.significance import TASK_AVG, differences, document_values, outcomes
from evaluation.results import LOG_PPLX, ResultStore, protocol_id
from matquant.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.load import LoadedResults

Measured = dict[tuple[str, str], np.ndarray]
"""By task and protocol: the value of each document."""


def measured(name: str, store: ResultStore) -> Measured:
    """Everything that was measured on CELL:PLAN; UserError if that is nothing."""
    cell_id, _, plan = name.rpartition(":")
    found: Measured = {}
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


def compare(ours: Measured, theirs: Measured) -> list[str]:
    """A line for each task that both were measured on in the same way."""
    common = {key[0]: key for key in ours if key in theirs}
    if not common:
        raise UserError("the two have no task in common that was measured under the same protocol")
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


Reading = tuple["pd.DataFrame", "LoadedResults"]
"""The rows of `summary.summary`, and the results they come from."""


def pairs_of(ours: Reading, theirs: Reading, *, first: str, second: str) -> pd.DataFrame:
    """Rows of one study against those of another at the same model and plan, named by the beginning of their method.

    A row for each pair and each of Task Avg and log perplexity; percent points and nats.
    """
    import pandas as pd  # the command line makes no table

    found = []
    for _, our in ours[0][ours[0]["method"].str.startswith(first)].iterrows():
        rivals = theirs[0][(theirs[0]["model"] == our["model"]) & (theirs[0]["plan"] == our["plan"])]
        for _, their in rivals[rivals["method"].str.startswith(second)].iterrows():
            compared = differences(outcomes(ours[1], our), outcomes(theirs[1], their))
            for task in (TASK_AVG, LOG_PPLX):
                if task in compared and our["cell_id"] != their["cell_id"]:
                    difference, scale = compared[task], 100 if task == TASK_AVG else 1
                    found.append(
                        {
                            "plan": our["plan"],
                            "first": our["label"],
                            "second": their["label"],
                            "what": TASK_NAMES[task],
                            "difference": scale * difference.mean,
                            "stderr": scale * difference.stderr,
                            "p_value": difference.p_value,
                            "documents": difference.num_documents,
                        }
                    )
    columns = ["plan", "first", "second", "what", "difference", "stderr", "p_value", "documents"]
    return pd.DataFrame(found, columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="such as smollm2_135m-omniquant-matquant-f7a9a509:int2")
    parser.add_argument("second")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder of results")
    options = parser.parse_args()
    try:
        store = ResultStore(options.results)
        print("\n".join(compare(measured(options.first, store), measured(options.second, store))))
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
