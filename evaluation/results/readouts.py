"""The results of a cell's read-outs in the form of a tracker: rows of a table, and a point for each plan.

Names of measures end in `_tuning` where they are of the text that defaults are chosen on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.results.flips import flips_of
from evaluation.results.metrics import LOG_PPLX, MEASURES, error_name, headline_metric, is_fraction
from evaluation.results.store import BLOCK_SHARE, Key, Protocol, Result, ResultStore
from evaluation.results.stored_bits import recounted_by_label
from matquant.config.cell import Cell, NoBase
from matquant.config.grid_words import all_words

EFFECTIVE_BITS, READOUT_AVG, READOUT_LOG_PPLX = "readout/effective_bits", "readout/task_avg", "readout/log_pplx"
"""Names of a plan's point: a line through a run's points is its Pareto curve."""
LOG_PPLX_TUNING, READOUT_LOG_PPLX_TUNING = f"{LOG_PPLX}_tuning", f"{READOUT_LOG_PPLX}_tuning"
"""The names of a log perplexity of tuning text, on which defaults are chosen: it never meets one of test text."""


def readout_rows(store: ResultStore, cell_id: str, wanted: Mapping[str, Protocol]) -> list[dict[str, Any]]:
    """A row for each plan and task of a cell, of its headline metric; `wanted`: the protocol of each task.

    Measures beside log perplexity have rows of their own, as tasks of their names.
    """
    rows, grid = [], grid_of(store, cell_id)
    for path in store.paths(cell_id):
        try:
            result = store.read(path)
        except (OSError, ValueError):
            continue  # reports and tables name it
        metric = headline_metric(result.metrics)
        if metric is not None and wanted.get(result.task) == result.protocol:
            found = recounted_by_label(result, store) or result
            rows += [
                _row(found, name, grid) for name in (metric, *(name for name in MEASURES if name in found.metrics))
            ]
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
        "task": (metric if metric in MEASURES else result.task) + ("_tuning" * is_of_tuning_text(result.protocol)),
        "metric": metric,
        "value": result.metrics[metric],
        "stderr": result.metrics.get(error_name(metric)),
        "documents": result.num_documents,
        **{name: share for name, share in result.overhead.items() if name == BLOCK_SHARE},
    }


def readout_point(rows: Sequence[Mapping[str, Any]], plan: str) -> dict[str, float]:
    """The point of a plan, as far as measured: its bits, Task Avg, log perplexity and the measures beside it.

    Shares are in percent.
    """
    of_plan = [row for row in rows if row["plan"] == plan]
    if not of_plan:
        return {}
    accuracies = [row["value"] for row in of_plan if is_fraction(row["metric"]) and row["metric"] not in MEASURES]
    of_text = [row for row in of_plan if row["metric"] in (LOG_PPLX, *MEASURES)]
    scales = {True: 100.0, False: 1.0}
    return {
        EFFECTIVE_BITS: of_plan[0]["effective_bits"],
        **({READOUT_AVG: 100 * sum(accuracies) / len(accuracies)} if accuracies else {}),
        **{f"readout/{row['task']}": scales[is_fraction(row["metric"])] * row["value"] for row in of_text},
        **{
            f"readout/{row['task'].replace(LOG_PPLX, 'perplexity')}": math.exp(row["value"])
            for row in of_text
            if row["metric"] == LOG_PPLX and row["value"] < LARGEST_EXPONENT
        },
    }


LARGEST_EXPONENT = 700.0


def readout_flips(store: ResultStore, cell: Cell, wanted: Mapping[str, Protocol], plan: str) -> dict[str, float]:
    """The flips of a plan in percent, by task and on average, where the unquantized model was measured alike.

    Empty for a cell whose weights are not known to be those of the unquantized model's results.
    """
    if cell.base.kind == "none":
        return {}
    other = Cell(model=cell.model, base=NoBase(kind="none")).id
    found: dict[str, list[float]] = {}
    for task, protocol in wanted.items():
        ours, theirs = (
            _outcomes(store, Key(cell_id, of_plan, task, protocol))
            for cell_id, of_plan in ((cell.id, plan), (other, "full"))
        )
        flips = flips_of(ours.values, theirs.values) if ours and theirs and ours.model == theirs.model else None
        for kind, share in flips.shares.items() if flips else ():
            found.setdefault(kind, []).append(100 * share)
    return {f"readout/{kind}": sum(shares) / len(shares) for kind, shares in found.items()}


class _Outcomes(NamedTuple):
    values: Sequence[Any]
    model: str | None
    """The fingerprint of the weights."""


def _outcomes(store: ResultStore, key: Key) -> _Outcomes | None:
    """The documents of a result by its headline metric; None if there is none, or it is not sound."""
    try:
        result = store.read(store.path(key))
        metric = headline_metric(result.metrics)
        return _Outcomes(store.documents(key).get(metric or "", ()), result.sources.get("model"))
    except (OSError, ValueError):
        return None
