"""The results of a cell's read-outs in the form of a tracker: rows of a table, and a point for each plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.results.store import BLOCK_SHARE, LOG_PPLX, Result, ResultStore, headline_metric

EFFECTIVE_BITS, READOUT_AVG, READOUT_LOG_PPLX = "readout/effective_bits", "readout/task_avg", "readout/log_pplx"
"""Names of a plan's point: a line through a run's points is its Pareto curve."""


def readout_rows(store: ResultStore, cell_id: str) -> list[dict[str, Any]]:
    """A row for each plan and task of a cell, of its headline metric; of several protocols the one measured last."""
    rows: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for path in store.paths(cell_id):
        try:
            result = store.read(path)
        except (OSError, ValueError):
            continue  # reports and tables name it
        finished = str(result.provenance.get("finished", ""))
        metric = headline_metric(result.metrics)
        if metric is not None and finished >= rows.get((result.plan, result.task), ("", {}))[0]:
            rows[result.plan, result.task] = finished, _row(result, metric)
    return [row for _, row in rows.values()]


def _row(result: Result, metric: str) -> dict[str, Any]:
    return {
        "plan": result.plan,
        "effective_bits": result.effective_bits,
        "model_bits": result.overhead.get("model_bits"),
        "task": result.task,
        "metric": metric,
        "value": result.metrics[metric],
        "stderr": result.metrics.get(f"{metric}_stderr"),
        "documents": result.num_documents,
        **{name: share for name, share in result.overhead.items() if name == BLOCK_SHARE},
    }


def readout_point(rows: Sequence[Mapping[str, Any]], plan: str) -> dict[str, float]:
    """The point of a plan, as far as measured: its bits, the mean of its accuracies in percent, its log perplexity."""
    of_plan = [row for row in rows if row["plan"] == plan]
    if not of_plan:
        return {}
    accuracies = [row["value"] for row in of_plan if row["task"] != LOG_PPLX and row["metric"] in ("acc", "acc_norm")]
    nats = [row["value"] for row in of_plan if row["task"] == LOG_PPLX]
    return {
        EFFECTIVE_BITS: of_plan[0]["effective_bits"],
        **({READOUT_AVG: 100 * sum(accuracies) / len(accuracies)} if accuracies else {}),
        **({READOUT_LOG_PPLX: nats[0]} if nats else {}),
    }
