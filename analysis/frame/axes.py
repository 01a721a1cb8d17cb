"""The quantities of a row that a figure can have on its axis: columns of `analysis.frame.summary` in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from evaluation.results.flips import RIGHT_TO_WRONG, WRONG_TO_RIGHT
from evaluation.results.metrics import (
    KL,
    KL_99,
    KL_MAX,
    KL_MEDIAN,
    LOG_PPLX,
    RMS_DP,
    SAME_TOP,
    TASK_AVG,
    higher_is_better,
)
from matquant.errors import UserError

PERPLEXITY = "perplexity"


class Measure(NamedTuple):
    """A quantity in words, and the factor that it is printed with."""

    title: str
    scale: float = 1.0
    is_log: bool = False
    """On a logarithmic axis where rows differ by more than two times."""


SHOWN: Mapping[str, Measure] = {
    TASK_AVG: Measure("Task Avg (%)", 100),
    LOG_PPLX: Measure("log perplexity (nats per token)", 1, True),
    PERPLEXITY: Measure("perplexity", 1, True),
    KL: Measure("KL divergence (nats per token)", 1, True),
    KL_MEDIAN: Measure("median KL divergence (nats)", 1, True),
    KL_99: Measure("99th percentile of KL divergence (nats)", 1, True),
    KL_MAX: Measure("largest KL divergence (nats)", 1, True),
    SAME_TOP: Measure("same top p (%)", 100),
    RMS_DP: Measure("RMS Δp (%)", 100, True),
    RIGHT_TO_WRONG: Measure("flips, right to wrong (%)", 100),
    WRONG_TO_RIGHT: Measure("flips, wrong to right (%)", 100),
}
"""The quantities that can be drawn against size, by column."""


USUAL_AXES = (TASK_AVG, LOG_PPLX)


def require_known(names: Iterable[str]) -> tuple[str, ...]:
    """The names of measures, each once; UserError for one that is none."""
    named = tuple(dict.fromkeys(filter(None, names)))
    if unknown := [name for name in named if name not in SHOWN]:
        raise UserError(f"--pareto {unknown[0]} is no measure; choose among {', '.join(SHOWN)}, joined by commas")
    return named or USUAL_AXES


def better_is_more(column: str) -> bool:
    """True for a column of which more is better."""
    return column == WRONG_TO_RIGHT or (column != RIGHT_TO_WRONG and higher_is_better(column))
