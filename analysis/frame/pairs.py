"""Rows of one study against those of another, on the documents that both have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from analysis.frame import grids
from analysis.frame.names import TASK_NAMES
from analysis.frame.significance import differences, outcomes
from evaluation.results.metrics import LOG_PPLX, TASK_AVG, is_fraction
from matquant.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analysis.frame.load import LoadedResults
    from analysis.frame.opened import OpenStudy
    from analysis.frame.significance import Difference
    from evaluation.results.store import Protocol


def pairs_of(ours: OpenStudy, theirs: OpenStudy, *, first: str, second: str) -> pd.DataFrame:
    """Rows of one study against those of another at the same model and plan, named by the beginning of their method.

    A row for each pair and each of Task Avg and log perplexity; percent points and nats.
    """
    found = []
    for _, our in ours.rows[ours.rows["method"].str.startswith(first)].iterrows():
        rivals = theirs.rows[(theirs.rows["model"] == our["model"]) & (theirs.rows["plan"] == our["plan"])]
        for _, their in rivals[rivals["method"].str.startswith(second)].iterrows():
            compared = _compared(ours, theirs, our, their)
            for task in (TASK_AVG, LOG_PPLX):
                if task in compared and our["cell_id"] != their["cell_id"]:
                    difference, scale = compared[task], 100 if task == TASK_AVG else 1
                    found.append(
                        {
                            "plan": our["plan"],
                            **dict(zip(("first", "second"), _names(our, their), strict=True)),
                            "what": TASK_NAMES[task],
                            "difference": scale * difference.mean,
                            "stderr": scale * difference.stderr,
                            "p_value": difference.p_value,
                            "documents": difference.num_documents,
                        }
                    )
    columns = ["plan", "first", "second", "what", "difference", "stderr", "p_value", "documents"]
    return pd.DataFrame(found, columns=columns)


def difference_of(study: OpenStudy, first: tuple[str, str], second: tuple[str, str]) -> pd.DataFrame:
    """Two read-outs of one study, each named by its label and plan: a row for every task that both have.

    Percent points for shares of right answers, else the unit of the metric; positive where the first has more.
    """
    ours, theirs = (_row(study, *one) for one in (first, second))
    compared = _compared(study, study, ours, theirs)
    metrics = {TASK_AVG: TASK_AVG, LOG_PPLX: LOG_PPLX, **study.loaded.metrics}
    scales = {task: 100 if is_fraction(metrics.get(task, task)) else 1 for task in compared}
    columns = {
        "difference": [scales[task] * found.mean for task, found in compared.items()],
        "stderr": [scales[task] * found.stderr for task, found in compared.items()],
        "p_value": [found.p_value for found in compared.values()],
        "documents": [found.num_documents for found in compared.values()],
        "test": [found.test for found in compared.values()],
    }
    return pd.DataFrame(columns, index=[TASK_NAMES.get(task, task) for task in compared])


def _row(study: OpenStudy, label: str, plan: str) -> pd.Series:
    of_study = study.rows[study.rows["base"] != "none"]
    found = of_study[(of_study["label"] == label) & (of_study["plan"] == plan)]
    if found.empty:
        pairs = ", ".join(f"{label!r} at {plan}" for label, plan in of_study[["label", "plan"]].itertuples(index=False))
        raise UserError(f"no row {label!r} at {plan!r}; there are {pairs}")
    return found.iloc[0]


def _names(our: pd.Series, their: pd.Series) -> tuple[str, str]:
    """The labels of two rows, each with its grid where they differ in it: a study's labels name it within the study."""
    sides = (our, their)
    words = [grids.text_of(side.to_dict()) for side in sides]
    if words[0] == words[1] or "none" in (our["base"], their["base"]):
        return our["label"], their["label"]
    first, second = (", ".join(filter(None, (side["name"], text))) for side, text in zip(sides, words, strict=True))
    return first, second


def _compared(ours: OpenStudy, theirs: OpenStudy, our: pd.Series, their: pd.Series) -> Mapping[str, Difference]:
    """The differences in the tasks that both studies measured under one protocol: on the same documents."""
    first, second = (_protocols(study.loaded, row) for study, row in ((ours, our), (theirs, their)))
    alike = {task for task in first if first[task] == second.get(task)}
    found = (outcomes(study.loaded, row) for study, row in ((ours, our), (theirs, their)))
    of_first, of_second = ({task: values for task, values in of.items() if task in alike} for of in found)
    return differences(of_first, of_second, ours.loaded.averaged)


def _protocols(loaded: LoadedResults, row: pd.Series) -> Mapping[str, Protocol]:
    cell_id = row["cell_id"].split(", ")[0]
    return {
        task: key.protocol for (cell, plan, task), key in loaded.keys.items() if (cell, plan) == (cell_id, row["plan"])
    }
