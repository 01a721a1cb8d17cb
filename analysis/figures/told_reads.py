"""The facts and words of read-outs in a figure of quality against size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from analysis.figures.told import number_text, tell
from analysis.frame.axes import SHOWN
from analysis.frame.names import model_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from matplotlib.axes import Axes

    from analysis.frame.summary import SummaryRow

FULL_PLACE = 0.985
"""The place of the unquantized model's line, as a share of the axes' width, where it can be pointed at."""


def tell_reads(
    axes: Axes,
    reads: pd.DataFrame,
    value: str,
    unit: str,
    moved: Iterable[tuple[pd.Index, np.ndarray]] = (),
) -> None:
    """A point for each read-out, at its `size` in a unit; `kept` are those that no other one dominates.

    `moved`: how far the markers of some rows were moved aside, in points.
    """
    facts = _facts(reads, value).assign(size=reads["size"], size_unit=unit)
    if "kept" in reads:
        facts["non_dominated"] = reads["kept"]
    words = [_words(row, value, unit) for row in reads.to_dict("records")]
    aside = pd.Series(0.0, index=reads.index)
    for rows, points in moved:
        aside[rows] = points
    tell(axes, reads["size"], facts["value"], facts, words, aside=aside)


def tell_full(axes: Axes, full: pd.DataFrame, value: str) -> None:
    """A point at the right end of the line of each unquantized model."""
    full = full.dropna(subset=value)
    facts = _facts(full, value)
    words = [f"{row['method']}, unquantized\n{_value_text(row, value)}" for row in full.to_dict("records")]
    tell(axes, FULL_PLACE, facts["value"], facts, words, axes.get_yaxis_transform())


def _facts(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """Values in the unit of the axis: percent, or nats."""
    measure = SHOWN[value]
    numbers = {"value": measure.scale * rows[value], "stderr": measure.scale * rows[f"{value}_stderr"]}
    return rows[["model", "label", "plan", "interpolated"]].assign(quantity=measure.title, **numbers)


def _words(row: SummaryRow, value: str, unit: str) -> str:
    notes = [*(["interpolated"] if row["interpolated"] else []), *(["not dominated"] if row.get("kept") else [])]
    size = f"{row['size']:.4g} {unit}"
    return "\n".join(
        filter(
            None,
            (
                f"{row['label']} at {row['plan']}",
                model_name(row["model"]),
                _value_text(row, value),
                size,
                ", ".join(notes),
            ),
        )
    )


def _value_text(row: SummaryRow, value: str) -> str:
    """`Task Avg (%): 46.7 ± 4.2`."""
    measure = SHOWN[value]
    return f"{measure.title}: {number_text(measure.scale * row[value], measure.scale * row[f'{value}_stderr'])}"
