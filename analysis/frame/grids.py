"""The grids of the rows of a table: in a column of their own where they differ, in one sentence where all share them.

A row has its grid in words (`matquant.config.grid_words`) in two columns: `grid`, where its codes lie, and `ends`, how
the ends of a group were chosen.  Rows whose grids differ are never compared as if they did not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

PARTS = ("grid", "ends")
PLAIN = "plain ends"
"""The words for ends that are neither searched for nor placed beyond the weights, where those of other rows are."""


def text_of(row: Mapping[Any, Any], parts: Iterable[str] = PARTS) -> str:
    """`groups of 64, real zero, reach 1.5`: the grid of one row."""
    return ", ".join(filter(None, (str(row[part]) for part in parts)))


def differing(rows: pd.DataFrame) -> list[str]:
    """The parts of the grid in which quantized rows differ."""
    quantized = rows[rows["base"] != "none"]
    return [part for part in PARTS if quantized[part].nunique() > 1]


def column_text(row: Mapping[Any, Any], parts: Iterable[str]) -> str:
    """The parts of a row's grid that are not those of all rows; empty for a row that is not quantized."""
    return "" if row["base"] == "none" else text_of(row, parts) or PLAIN


def shared_text(rows: pd.DataFrame) -> str:
    """The parts of the grid that all quantized rows share: `groups of 64, real zero`."""
    quantized = rows[rows["base"] != "none"]
    if quantized.empty:
        return ""
    parts = differing(rows)
    return text_of(quantized.iloc[0].to_dict(), [part for part in PARTS if part not in parts])


def sentence(rows: pd.DataFrame) -> str:
    """`Grid of all quantized rows: groups of 64, real zero.`; empty if they share nothing."""
    shared = shared_text(rows)
    return f"Grid of all quantized rows: {shared}." if shared else ""
