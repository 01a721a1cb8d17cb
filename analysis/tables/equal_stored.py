"""Rows at equal stored bits: for each budget, the widest read-out of every model that fits into it.

A file of one width has the bits that it has, so its stored bits are a budget; whoever can be read at several widths is
read at the one that fits.  Stored counts everything, per parameter of the whole model, so that rows of other groups,
other scopes and other codebooks meet at one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from analysis.frame.names import named_weights
from analysis.tables.typeset import Entry, Section, Table, with_errors
from evaluation.results.metrics import LOG_PPLX, TASK_AVG

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("Stored, at most", "Method", "Read at", "Stored")
TOLERANCE = 1e-3
"""The share of a budget by which a read-out may be larger: the same bits, counted over other codes."""
NOTE = (
    "Stored: codes, scales, zeros, tables and overflow lists as they are stored, per parameter of the whole model, "
    "unquantized ones in 16 bits.  The budgets are those of rows that are read at one width.  Under each stands the "
    "widest read-out of every row that fits."
)


def at_equal_stored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the table with their `budget`; none where nobody else's model stands beside others."""
    measured = rows[(rows["base"] != "none") & rows["model_bits"].notna()]
    is_contest = (measured["base"] == "foreign").any() and measured["config_id"].nunique() > 1
    found = list(_found(measured)) if is_contest else []
    chosen = measured.loc[[index for index, _ in found]]
    return chosen.assign(budget=[budget for _, budget in found])


def _found(measured: pd.DataFrame) -> Iterator[tuple[object, float]]:
    """The index of each chosen row, and its budget."""
    for _, of_model in measured.groupby("model", sort=False):
        configs = of_model.groupby("config_id", sort=False)
        budgets = {float(f"{one['model_bits'].iloc[0]:.4g}") for _, one in configs if len(one) == 1}
        for budget in sorted(budgets, reverse=True):
            fitting = of_model[of_model["model_bits"] <= budget * (1 + TOLERANCE)]
            widest = fitting.groupby("config_id", sort=False)["model_bits"].transform("max")
            for index in fitting.index[fitting["model_bits"] == widest]:  # several where they are read by several rules
                yield index, budget


def equal_stored_table(rows: pd.DataFrame) -> Table | None:
    """The table of `at_equal_stored` as text; None where it has no rows."""
    chosen = at_equal_stored(rows)
    if chosen.empty:
        return None
    with_tasks = bool(chosen[TASK_AVG].notna().any())  # no column for what nobody asked for
    heads = (*LABELS, *(["Task Avg ↑"] if with_tasks else []), "log pplx ↓")
    groups = chosen.groupby(["model", "budget"], sort=False)
    sections = tuple(_section(str(model), f"{budget:.4g}", group, with_tasks) for (model, budget), group in groups)
    return Table(heads, sections, (NOTE,), num_labels=3, caption="At equal stored bits")


def _section(model: str, budget: str, rows: pd.DataFrame, with_tasks: bool) -> Section:
    texts = [
        (
            budget,
            named_weights(row["name"]),
            row["plan"],
            f"{row['model_bits']:.4g}",
            *([_percent(row[TASK_AVG], row[f"{TASK_AVG}_stderr"])] if with_tasks else []),
            with_errors(row[LOG_PPLX], row[f"{LOG_PPLX}_stderr"], np.nan, ".3f", named=False),
        )
        for row in rows.sort_values(LOG_PPLX, kind="stable").to_dict("records")
    ]
    return Section(model, budget, tuple(tuple(map(Entry, text)) for text in texts))


def _percent(share: float, stderr: float) -> str:
    return with_errors(100 * share, 100 * stderr, np.nan, ".1f", named=False)
