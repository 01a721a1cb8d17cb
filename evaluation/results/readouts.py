"""The results of a cell's read-outs in the form of a tracker: rows of a table, and a point for each plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.results.metrics import LOG_PPLX, error_name, headline_metric, is_fraction
from evaluation.results.store import BLOCK_SHARE, Protocol, Result, ResultStore
from evaluation.results.stored_bits import recounted_by_label
from matquant.config.cell import Cell
from matquant.config.grid_words import all_words

EFFECTIVE_BITS, READOUT_AVG, READOUT_LOG_PPLX = "readout/effective_bits", "readout/task_avg", "readout/log_pplx"
"""Names of a plan's point: a line through a run's points is its Pareto curve."""
LOG_PPLX_TUNING, READOUT_LOG_PPLX_TUNING = f"{LOG_PPLX}_tuning", f"{READOUT_LOG_PPLX}_tuning"
"""The names of a log perplexity of tuning text, on which defaults are chosen: it never meets one of test text."""


def readout_rows(store: ResultStore, cell_id: str, wanted: Mapping[str, Protocol]) -> list[dict[str, Any]]:
    """A row for each plan and task of a cell, of its headline metric; `wanted`: the protocol of each task."""
    rows, grid = [], grid_of(store, cell_id)
    for path in store.paths(cell_id):
        try:
            result = store.read(path)
        except (OSError, ValueError):
            continue  # reports and tables name it
        metric = headline_metric(result.metrics)
        if metric is not None and wanted.get(result.task) == result.protocol:
            rows.append(_row(recounted_by_label(result, store) or result, metric, grid))
    return rows


def is_of_tuning_text(protocol: Protocol) -> bool:
    """True for a log perplexity of the text that defaults are chosen on."""
    return protocol.get("part") == "tuning"


def grid_of(store: ResultStore, cell_id: str) -> str:
    """The grid of a cell in words, from its recorded specification; empty if it has none, or that cannot be read."""
    try:
        return all_words(Cell.model_validate(json.loads(store.text(cell_id, "cell.json"))))
    except (OSError, ValueError):
        return ""


def _row(result: Result, metric: str, grid: str) -> dict[str, Any]:
    return {
        "plan": result.plan,
        "grid": grid,
        "effective_bits": result.effective_bits,
        "model_bits": result.overhead.get("model_bits"),
        "task": LOG_PPLX_TUNING if is_of_tuning_text(result.protocol) else result.task,
        "metric": metric,
        "value": result.metrics[metric],
        "stderr": result.metrics.get(error_name(metric)),
        "documents": result.num_documents,
        **{name: share for name, share in result.overhead.items() if name == BLOCK_SHARE},
    }


def readout_point(rows: Sequence[Mapping[str, Any]], plan: str) -> dict[str, float]:
    """The point of a plan, as far as measured: its bits, the mean of its accuracies in percent, its log perplexity."""
    of_plan = [row for row in rows if row["plan"] == plan]
    if not of_plan:
        return {}
    accuracies = [row["value"] for row in of_plan if is_fraction(row["metric"])]
    nats = {row["task"]: row["value"] for row in of_plan}
    return {
        EFFECTIVE_BITS: of_plan[0]["effective_bits"],
        **({READOUT_AVG: 100 * sum(accuracies) / len(accuracies)} if accuracies else {}),
        **{f"readout/{name}": nats[name] for name in (LOG_PPLX, LOG_PPLX_TUNING) if name in nats},
    }
