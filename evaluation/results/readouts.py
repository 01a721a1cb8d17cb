"""The results of a cell's read-outs in the form of a tracker: rows of a table, and a point for each plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.results.metrics import LOG_PPLX, error_name, headline_metric, is_fraction
from evaluation.results.store import BLOCK_SHARE, Protocol, Result, ResultStore

EFFECTIVE_BITS, READOUT_AVG, READOUT_LOG_PPLX = "readout/effective_bits", "readout/task_avg", "readout/log_pplx"
"""Names of a plan's point: a line through a run's points is its Pareto curve."""
LOG_PPLX_TUNING, READOUT_LOG_PPLX_TUNING = f"{LOG_PPLX}_tuning", f"{READOUT_LOG_PPLX}_tuning"
"""The names of a log perplexity of tuning text, on which defaults are chosen: it never meets one of test text."""


def readout_rows(store: ResultStore, cell_id: str, wanted: Mapping[str, Protocol]) -> list[dict[str, Any]]:
    """A row for each plan and task of a cell, of its headline metric; `wanted`: the protocol of each task."""
    rows = []
    for path in store.paths(cell_id):
        try:
            result = store.read(path)
        except (OSError, ValueError):
            continue  # reports and tables name it
        metric = headline_metric(result.metrics)
        if metric is not None and wanted.get(result.task) == result.protocol:
            rows.append(_row(result, metric))
    return rows


def is_of_tuning_text(protocol: Protocol) -> bool:
    """True for a log perplexity of the text that defaults are chosen on."""
    return protocol.get("part") == "tuning"


def _row(result: Result, metric: str) -> dict[str, Any]:
    return {
        "plan": result.plan,
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
