"""Rows of one study against those of another, on the documents that both have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from analysis.frame.names import TASK_NAMES
from analysis.frame.significance import TASK_AVG, differences, outcomes
from evaluation.results.store import LOG_PPLX

if TYPE_CHECKING:
    from analysis.frame.opened import OpenStudy


def pairs_of(ours: OpenStudy, theirs: OpenStudy, *, first: str, second: str) -> pd.DataFrame:
    """Rows of one study against those of another at the same model and plan, named by the beginning of their method.

    A row for each pair and each of Task Avg and log perplexity; percent points and nats.
    """
    found = []
    for _, our in ours.rows[ours.rows["method"].str.startswith(first)].iterrows():
        rivals = theirs.rows[(theirs.rows["model"] == our["model"]) & (theirs.rows["plan"] == our["plan"])]
        for _, their in rivals[rivals["method"].str.startswith(second)].iterrows():
            compared = differences(outcomes(ours.loaded, our), outcomes(theirs.loaded, their))
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
