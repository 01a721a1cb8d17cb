"""The kinds of tables: a study's own summary, and those of the paper with ours beside theirs.

Numbers and type are apart: `summary.summary` and `beside.side_by_side` make frames of numbers, the functions here
make them text the way a paper prints it, and `drawing` draws that text for a terminal, a repository, a page and LaTeX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame.significance import LEVEL, TASK_AVG
from analysis.frame.summary import SummaryRow, data_type, task_name
from analysis.tables.typeset import BETTER, DAGGER, MISSING, WORSE, Entry, Section, Table, winners, with_error
from evaluation.results.store import BLOCK_SHARE, LOG_PPLX

GRID, OVERFLOW, STORED = "+ grid", "+ overflow", "Stored"
BITS_NOTE = (
    "Bits: the paper's count, per quantized weight; what it leaves out stands beside it.  + grid: scales, zeros and "
    "transformation; + overflow: which weights are in the overflow bucket; Stored: everything, per parameter of the "
    "whole model, unquantized ones in 16 bits."
)


@dataclass(frozen=True)
class Column:
    """A head, the text of a row's entry, and the sign that makes the larger value the better one (0: no contest)."""

    head: str
    text: Callable[[SummaryRow], str]
    sign: int = 0


def summary_table(rows: pd.DataFrame, tasks: Sequence[str], comparisons: pd.DataFrame | None = None) -> Table:
    """Turns the numbers of `summary` into the text of a table.

    `comparisons`: what `significance.against_reference` found; significant differences are marked.
    """
    marks = significant_marks(comparisons)
    rows = rows.assign(marks=pd.Series({index: marks.get(index, {}) for index in rows.index}, dtype=object))
    columns = (
        Column("Data type", data_type),
        Column("Method", _method_text),
        Column("Bits", _bits("effective_bits")),
        Column(GRID, _bits("grid_bits")),
        *([Column(OVERFLOW, _bits("overflow_bits"))] if (rows["overflow_bits"] > 0).any() else []),
        Column(STORED, _bits("model_bits")),
        *(Column(task_name(task), _percent_of(task), +1) for task in tasks),
        Column("Task Avg ↑", _percent_of(TASK_AVG, shows_error=True), +1),
        Column("log pplx ↓", _nats, -1),
    )
    groups: dict[tuple[str, str], list[SummaryRow]] = {}
    for row in rows.to_dict("records"):
        groups.setdefault((row["model"], data_type(row)), []).append(row)
    sections = tuple(_section(model, name, group, columns) for (model, name), group in groups.items())
    return Table(tuple(column.head for column in columns), sections, _notes(rows, sections, comparisons))


def significant_marks(comparisons: pd.DataFrame | None) -> dict[Any, dict[str, str]]:
    """The marks of each row, by task: better or worse, where it differs significantly from its reference."""
    if comparisons is None:
        return {}
    found = comparisons[comparisons["p_value"] < LEVEL]
    marks: dict[Any, dict[str, str]] = {}
    for index, task, difference in zip(found.index, found["task"], found["difference"], strict=True):
        better = (difference > 0) != (task == LOG_PPLX)
        marks.setdefault(index, {})[task] = BETTER if better else WORSE
    return marks


def _section(model: str, name: str, rows: Sequence[SummaryRow], columns: Sequence[Column]) -> Section:
    texts = [[column.text(row) for column in columns] for row in rows]
    contest = len(rows) > 1 and all(row["base"] != "none" for row in rows)
    best = [winners([text[i] for text in texts], column.sign) if contest else set() for i, column in enumerate(columns)]
    drawn = (tuple(Entry(text, number in best[i]) for i, text in enumerate(row)) for number, row in enumerate(texts))
    return Section(model, name, tuple(drawn))


def _method_text(row: SummaryRow) -> str:
    seeds = f", {row['num_seeds']} seeds" if row["num_seeds"] > 1 else ""
    name = "unquantized" if row["base"] == "none" else row["label"]
    return name + (f" {DAGGER}" if row["interpolated"] else "") + seeds


def _bits(column: str) -> Callable[[SummaryRow], str]:
    return lambda row: with_error(row[column], np.nan, ".4g")


def _percent_of(value: str, *, shows_error: bool = False) -> Callable[[SummaryRow], str]:
    def text(row: SummaryRow) -> str:
        error = 100 * row[f"{value}_stderr"] if shows_error else np.nan
        return marked(with_error(100 * row[value], error, ".1f"), row["marks"].get(value))

    return text


def _nats(row: SummaryRow) -> str:
    text = with_error(row[LOG_PPLX], row[f"{LOG_PPLX}_stderr"], ".3f")
    return marked(text, row["marks"].get(LOG_PPLX))


def marked(text: str, mark: str | None) -> str:
    return text if not mark or text == MISSING else f"{text} {mark}"


def _notes(rows: pd.DataFrame, sections: Sequence[Section], comparisons: pd.DataFrame | None) -> tuple[str, ...]:
    """The legend: only the marks that occur."""
    texts = {entry.text for section in sections for row in section.rows for entry in row}
    notes = ["Tasks and Task Avg in percent, higher is better; log pplx in nats per token, lower is better."]
    if rows["model_bits"].notna().any():
        notes.append(BITS_NOTE)
    if rows[BLOCK_SHARE].notna().any():
        notes.append(PARTIAL_NOTE)
    if any("±" in text for text in texts):
        notes.append(ERROR_NOTE)
    if comparisons is not None and len(comparisons):
        notes.append(f"{SIGNIFICANCE_NOTE} ({len(comparisons)}).")
    if (rows["num_seeds"] > 1).any():
        notes.append("Rows of several seeds: mean ± standard deviation between seeds.")
    if rows["interpolated"].any():
        notes.append(INTERPOLATED_NOTE)
    if MISSING in texts:
        notes.append(MISSING_NOTE)
    return tuple(notes)


PARTIAL_NOTE = (
    "Of block weights: the share of its scope's weights that a row quantizes (scope.partial=true); its Bits count "
    "these alone, Stored counts all."
)
ERROR_NOTE = "±: standard error over documents; it does not cover another training run."
SIGNIFICANCE_NOTE = (
    f"{BETTER} {WORSE} significantly better or worse than the explicit Baseline of the same width, or where "
    "there is none than the sliced parent: paired over the same documents, p < 0.05, not corrected for the "
    "number of comparisons"
)
INTERPOLATED_NOTE = f"{DAGGER} interpolated: read at a width between those it was trained for."
MISSING_NOTE = f"{MISSING} missing: not measured yet, or left out for a reason given under problems."
