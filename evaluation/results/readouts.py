"""The results of a cell's read-outs in the form of a tracker: rows of a table, and a point for each plan.

Names of measures end in `_tuning` where they are of the text that defaults are chosen on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.results.flips import flips_of
from evaluation.results.metrics import (
    LOG_PPLX,
    MEAN_DP,
    RMS_DP,
    SAME_TOP,
    TASK_AVG,
    error_name,
    headline_metric,
    is_fraction,
    is_metric,
)
from evaluation.results.store import BLOCK_SHARE, Key, Protocol, Result, ResultStore
from evaluation.results.stored_bits import recounted_by_label
from matquant.config.cell import Cell, NoBase
from matquant.config.grid_words import all_words
from matquant.runs.tracked.labels import EFFECTIVE_BITS, READOUT

LARGEST_EXPONENT = 700.0
IN_PERCENT = (SAME_TOP, RMS_DP, MEAN_DP)
"""The measures of held-out text that are shares, or differences of them."""
PERPLEXITY = "perplexity"
READOUT_AVG = f"{READOUT}{TASK_AVG}"
"""A name of a plan's point: a line through a run's points is its Pareto curve."""
TUNING = "_tuning"
"""The end of names of what is measured on tuning text, on which defaults are chosen: it never meets test text."""
LOG_PPLX_TUNING = f"{LOG_PPLX}{TUNING}"


def readout_rows(store: ResultStore, cell_id: str, wanted: Mapping[str, Protocol]) -> list[dict[str, Any]]:
    """A row for each plan, task and metric of a cell; `wanted`: the protocol of each task."""
    rows, grid = [], grid_of(store, cell_id)
    for path in store.paths(cell_id):
        try:
            result = store.read(path)
        except (OSError, ValueError):
            continue  # reports and tables name it
        if wanted.get(result.task) == result.protocol:
            result = recounted_by_label(result, store) or result
            rows += [_row(result, metric, grid) for metric in filter(is_metric, result.metrics)]
    return rows


def is_of_tuning_text(protocol: Protocol) -> bool:
    """True for a log perplexity of the text that defaults are chosen on."""
    return protocol.get("part") == "tuning"


def grid_of(store: ResultStore, cell_id: str) -> str:
    """The grid of a cell in words, from its recorded specification; empty if it has none, or that cannot be read."""
    cell = _recorded(store, cell_id)
    return "" if cell is None else all_words(cell)


def model_of(store: ResultStore, cell_id: str) -> str:
    """The name of a cell's model, from its recorded specification; empty if that cannot be read."""
    cell = _recorded(store, cell_id)
    return "" if cell is None else cell.model.name


def _recorded(store: ResultStore, cell_id: str) -> Cell | None:
    try:
        return Cell.model_validate(json.loads(store.text(cell_id, "cell.json")))
    except (OSError, ValueError):
        return None


def _row(result: Result, metric: str, grid: str) -> dict[str, Any]:
    return {
        "plan": result.plan,
        "grid": grid,
        "effective_bits": result.effective_bits,
        "model_bits": result.overhead.get("model_bits"),
        "task": LOG_PPLX_TUNING if is_of_tuning_text(result.protocol) else result.task,
        "metric": metric,
        "is_headline": metric == headline_metric(result.metrics),
        "value": result.metrics[metric],
        "stderr": result.metrics.get(error_name(metric)),
        "documents": result.num_documents,
        **{name: share for name, share in result.overhead.items() if name == BLOCK_SHARE},
    }


def readout_point(
    rows: Sequence[Mapping[str, Any]], plan: str, averaged: Collection[str] | None = None
) -> dict[str, float]:
    """The point of a plan, as far as measured: its bits, and everything that was read at it.

    `averaged`: the tasks of Task Avg, if not all are.
    """
    of_plan = [row for row in rows if row["plan"] == plan]
    return {f"{READOUT}{name}": value for name, value in _measures(of_plan, averaged).items()}


def summary_of_widths(rows: Sequence[Mapping[str, Any]], averaged: Collection[str] | None = None) -> dict[str, float]:
    """Everything that was read at every plan, such as `int2/log_pplx`, with standard errors and a model's bits."""
    found = {}
    for plan in dict.fromkeys(row["plan"] for row in rows):
        of_plan = [row for row in rows if row["plan"] == plan]
        errors = {
            f"{_name(row)}_stderr": _as_printed({**row, "value": row["stderr"]})
            for row in of_plan
            if row["stderr"] is not None
        }
        numbers = {**_measures(of_plan, averaged), **errors}
        if (model_bits := of_plan[0]["model_bits"]) is not None:
            numbers["model_bits"] = model_bits
        found |= {f"{plan}/{name}": value for name, value in numbers.items()}
    return found


def _measures(of_plan: Sequence[Mapping[str, Any]], averaged: Collection[str] | None) -> dict[str, float]:
    """All metrics of a plan by their names, with its bits and the mean of its tasks' accuracies.

    That mean and shares of held-out text are in percent, as tables have them; a task's metrics are lm-eval's own.
    """
    if not of_plan:
        return {}
    counted = [row for row in of_plan if averaged is None or row["task"] in averaged]
    accuracies = [row["value"] for row in counted if row["is_headline"] and is_fraction(row["metric"])]
    return {
        EFFECTIVE_BITS.removeprefix(READOUT): of_plan[0]["effective_bits"],
        **({TASK_AVG: 100 * sum(accuracies) / len(accuracies)} if accuracies else {}),
        **{_name(row): _as_printed(row) for row in of_plan},
        **{
            _name({**row, "metric": PERPLEXITY}): math.exp(row["value"])
            for row in of_plan
            if row["metric"] == LOG_PPLX and row["value"] < LARGEST_EXPONENT
        },
    }


def _as_printed(row: Mapping[str, Any]) -> float:
    is_share = row["task"] in (LOG_PPLX, LOG_PPLX_TUNING) and row["metric"] in IN_PERCENT
    return 100 * row["value"] if is_share else row["value"]


def _name(row: Mapping[str, Any]) -> str:
    """The name of a metric: `piqa/acc`, `gsm8k/exact_match/strict-match`; of held-out text the metric alone."""
    metric = row["metric"].replace(",", "/")
    if row["task"] == LOG_PPLX:
        return metric
    return f"{metric}{TUNING}" if row["task"] == LOG_PPLX_TUNING else f"{row['task']}/{metric}"


def readout_flips(store: ResultStore, cell: Cell, wanted: Mapping[str, Protocol], plan: str) -> dict[str, float]:
    """The flips of a plan in percent, the mean over tasks, where the unquantized model was measured alike on all.

    `wanted`: the tasks of Task Avg.  Empty for a cell whose weights are not known to be those of the unquantized
    model's results, and for a model that somebody else quantized.
    """
    if cell.objective is None:
        return {}
    other = Cell(model=cell.model, base=NoBase(kind="none")).id
    found: list[Mapping[str, float]] = []
    for task, protocol in wanted.items():
        ours = _outcomes(store, Key(cell.id, plan, task, protocol))
        if ours is None:
            continue  # no share of right answers, or not measured: Task Avg is without it, too
        theirs = _outcomes(store, Key(other, "full", task, protocol))
        flips = flips_of(ours.values, theirs.values) if theirs is not None and ours.model == theirs.model else None
        if flips is None:
            return {}
        found.append(flips.shares)
    return {kind: 100 * sum(shares[kind] for shares in found) / len(found) for kind in found[0]} if found else {}


class _Outcomes(NamedTuple):
    values: Sequence[Any]
    model: str | None
    """The fingerprint of the weights."""


def _outcomes(store: ResultStore, key: Key) -> _Outcomes | None:
    """The documents of a result by its share of right answers; None if it has none, or there is no sound result."""
    try:
        result = store.read(store.path(key))
        metric = headline_metric(result.metrics)
        if metric is None or not is_fraction(metric):
            return None
        return _Outcomes(store.documents(key).get(metric, ()), result.sources.get("model"))
    except (OSError, ValueError):
        return None
