"""The kinds of tables: a study's own summary, and those of the paper with ours beside theirs.

Numbers and type are apart: `summary.summary` and `beside.side_by_side` make frames of numbers, the functions here
make them text the way a paper prints it, and `drawing` draws that text for a terminal, a repository, a page and LaTeX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import grids
from analysis.frame.axes import PERPLEXITY
from analysis.frame.best import BEST
from analysis.frame.names import named_weights
from analysis.frame.significance import LEVEL
from analysis.frame.summary import SummaryRow, data_type, task_name
from analysis.tables.typeset import (
    BETTER,
    DAGGER,
    MISSING,
    WORSE,
    Entry,
    Section,
    Table,
    with_error,
    with_errors,
)
from evaluation.results.flips import RIGHT_TO_WRONG, WRONG_TO_RIGHT
from evaluation.results.metrics import KL, LOG_PPLX, SAME_TOP, TASK_AVG, Directions, higher_is_better, is_fraction
from evaluation.results.store import BLOCK_SHARE

GRID, OVERFLOW, STORED = "+ grid", "+ overflow", "Stored"
GRID_WORDS = "Grid"
"""The column that says what a row's grid is, where rows differ in it."""
BITS_NOTE = (
    "Bits: the paper's count, per quantized weight; what it leaves out stands beside it.  + grid: scales, zeros and "
    "transformation; + overflow: which weights are in the overflow bucket; Stored: everything, per parameter of the "
    "whole model, unquantized ones in 16 bits."
)

NATS_NOTE = "log pplx in nats per token, lower is better."


@dataclass(frozen=True)
class Column:
    """A head, the text of a row's entry, and the number that the entry prints, which may be bold; empty for others."""

    head: str
    text: Callable[[SummaryRow], str]
    number: str = ""


def summary_table(
    rows: pd.DataFrame,
    tasks: Sequence[str],
    comparisons: pd.DataFrame | None = None,
    metrics: Mapping[str, str] | None = None,
    directions: Mapping[str, Directions] | None = None,
    more: Sequence[Column] = (),
) -> Table:
    """Turns the numbers of `summary` into the text of a table.

    `comparisons`: what `significance.against_reference` found; significant differences are marked.  `metrics`: the
    metric of every task that has been measured.  `directions`: what its yaml says about its metrics.  `more`: columns
    that stand behind those of bits.
    """
    marks, metrics, directions = significant_marks(comparisons), metrics or {}, directions or {}
    rows = with_reference_notes(rows, comparisons)
    rows = rows.assign(
        marks=pd.Series({index: marks.get(index, {}) for index in rows.index}, dtype=object),
        signs=row_note_signs(rows),
    )
    several, parts = bool((rows["num_seeds"] > 1).any()), grids.differing(rows)
    columns = (
        Column("Data type", data_type),
        Column("Method", _method(several=several)),
        *([Column(GRID_WORDS, lambda row: grids.column_text(row, parts))] if parts else []),
        Column("Bits", _bits("effective_bits")),
        Column(GRID, _bits("grid_bits")),
        *([Column(OVERFLOW, _bits("overflow_bits"))] if (rows["overflow_bits"] > 0).any() else []),
        Column(STORED, _bits("model_bits")),
        *more,
        *(_task_column(task, metrics.get(task), directions.get(task)) for task in tasks),
        *([Column("Task Avg ↑", _number(TASK_AVG, 100, ".1f", errors=True, named=several), TASK_AVG)] if tasks else []),
        *([Column("Flips", _flips)] if has_flips(rows) else []),
        Column("log pplx ↓", _number(LOG_PPLX, 1, ".3f", errors=True, named=several), LOG_PPLX),
        *(_measure_columns(several=several) if rows[KL].notna().any() else []),
    )
    groups: dict[tuple[str, str], list[SummaryRow]] = {}
    for row in rows.to_dict("records"):
        groups.setdefault((row["model"], data_type(row)), []).append(row)
    sections = tuple(_section(model, name, group, columns) for (model, name), group in groups.items())
    units = [*(["Tasks and Task Avg in percent, higher is better"] if tasks else []), NATS_NOTE]
    notes = ("; ".join(units), *_notes(rows, sections, comparisons), *metric_notes(metrics), *row_notes(rows))
    return Table(tuple(column.head for column in columns), sections, notes, num_labels=3 if parts else 2)


def _task_column(task: str, metric: str | None, said: Directions | None) -> Column:
    """A task under its name; a metric other than accuracy stands in the head, in percent if it is a share."""
    better = metric is None or higher_is_better(metric, said)
    if metric is None or (metric in ACCURACIES and better):
        return Column(task_name(task), _number(task, 100, ".1f"), task)
    head = f"{task_name(task)} {metric.replace(',', ', ')} {'↑' if better else '↓'}"
    scale, form = (100, ".1f") if is_fraction(metric) else (1, ".3f")
    return Column(head, _number(task, scale, form), task)


def has_flips(rows: pd.DataFrame) -> bool:
    """True if flips were counted for some row."""
    return RIGHT_TO_WRONG in rows and bool(rows[RIGHT_TO_WRONG].notna().any())


def _flips(row: SummaryRow) -> str:
    """`5.0 lost, 2.5 won`, in percent of all documents."""
    if row["base"] == "none":
        return REFERENCE
    lost, won = row[RIGHT_TO_WRONG], row[WRONG_TO_RIGHT]
    return MISSING if lost != lost else f"{100 * lost:.1f} lost, {100 * won:.1f} won"


def _measure_columns(*, several: bool) -> Sequence[Column]:
    """Perplexity, and beside it what tells from the unquantized model."""

    def compared(value: str, scale: float, form: str) -> Callable[[SummaryRow], str]:
        number = _number(value, scale, form, errors=True, named=several)
        return lambda row: REFERENCE if row["base"] == "none" else number(row)

    return (
        Column("pplx ↓", lambda row: _number(PERPLEXITY, 1, digits(row[PERPLEXITY], 4))(row)),
        Column("KL ↓", lambda row: compared(KL, 1, digits(row[KL], 3))(row), KL),
        Column("Same top p ↑", compared(SAME_TOP, 100, ".1f"), SAME_TOP),
    )


def digits(value: float, significant: int) -> str:
    """The form of a positive number with so many digits, and of its error with as many decimals; never an exponent."""
    if not 0 < value < math.inf:
        return ".0f"
    return f".{min(max(significant - 1 - math.floor(math.log10(value)), 0), 6)}f"


REFERENCE = "reference"
"""The entry of the unquantized model where others are compared with it."""
ACCURACIES = ("acc", "acc_norm")


def metric_notes(metrics: Mapping[str, str]) -> list[str]:
    """The tasks that Task Avg leaves out, if there are any."""
    left_out = [task_name(task) for task, metric in metrics.items() if not is_fraction(metric) and task != LOG_PPLX]
    if not left_out:
        return []
    return [f"Task Avg is without {', '.join(left_out)}, whose metric is not a share of right answers."]


# --- notes on single rows --------------------------------------------------------------------------------------------


def row_note_signs(rows: pd.DataFrame) -> pd.Series:
    """The signs of each row's notes, ` [1] [2]`; equal notes have one sign."""
    signs = _note_signs(rows)
    texts = ["".join(f" [{signs[note]}]" for note in notes) for notes in rows["notes"]]
    return pd.Series(texts, rows.index, dtype=object)


def row_notes(rows: pd.DataFrame) -> list[str]:
    """Every note on a row once, with its sign."""
    return [f"[{sign}] {note}." for note, sign in _note_signs(rows).items()]


def _note_signs(rows: pd.DataFrame) -> dict[str, int]:
    distinct = dict.fromkeys(note for notes in rows["notes"] for note in notes)
    return {note: number for number, note in enumerate(distinct, start=1)}


def with_reference_notes(rows: pd.DataFrame, comparisons: pd.DataFrame | None) -> pd.DataFrame:
    """The rows, with a note on those that are held against a row on another grid."""
    if comparisons is None:
        return rows
    other = comparisons[comparisons["grid"] != comparisons["reference_grid"]]
    grid_of = dict(zip(other.index, other["reference_grid"], strict=True))
    noted = [
        (*notes, f"{BETTER} {WORSE} against a row on another grid: {grid_of[index]}") if index in grid_of else notes
        for index, notes in rows["notes"].items()
    ]
    return rows.assign(notes=pd.Series(noted, rows.index, dtype=object))


def significant_marks(comparisons: pd.DataFrame | None) -> dict[Any, dict[str, str]]:
    """The marks of each row, by task: better or worse, where it differs significantly from its reference."""
    if comparisons is None:
        return {}
    found = comparisons[comparisons["p_value"] < LEVEL]
    marks: dict[Any, dict[str, str]] = {}
    columns = (found.index, found["task"], found["difference"], found["higher_is_better"])
    for index, task, difference, higher in zip(*columns, strict=True):
        marks.setdefault(index, {})[task] = BETTER if (difference > 0) == higher else WORSE
    return marks


# --- rows and their entries ------------------------------------------------------------------------------------------


def _section(model: str, name: str, rows: Sequence[SummaryRow], columns: Sequence[Column]) -> Section:
    drawn = (tuple(Entry(column.text(row), column.number in row.get(BEST, ())) for column in columns) for row in rows)
    return Section(model, name, tuple(drawn))


def _method(*, several: bool) -> Callable[[SummaryRow], str]:
    """The name of a row; where one has several seeds, every row says how many it has."""

    def text(row: SummaryRow) -> str:
        seeds = f", {row['num_seeds']} seed{'s' * (row['num_seeds'] > 1)}" if several and row["base"] != "none" else ""
        name = "unquantized" if row["base"] == "none" else named_weights(row["name"])
        return name + (f" {DAGGER}" if row["interpolated"] else "") + seeds + row["signs"]

    return text


def _bits(column: str) -> Callable[[SummaryRow], str]:
    return lambda row: with_error(row[column], np.nan, ".4g")


def _number(
    value: str, scale: float, form: str, *, errors: bool = False, named: bool = False
) -> Callable[[SummaryRow], str]:
    def text(row: SummaryRow) -> str:
        stderr, spread = (row[f"{value}_{kind}"] if errors else np.nan for kind in ("stderr", "spread"))
        shown = with_errors(scale * row[value], scale * stderr, scale * spread, form, named=named)
        return marked(shown, row["marks"].get(value))

    return text


def marked(text: str, mark: str | None) -> str:
    return text if not mark or text == MISSING else f"{text} {mark}"


def _notes(rows: pd.DataFrame, sections: Sequence[Section], comparisons: pd.DataFrame | None) -> tuple[str, ...]:
    """The legend: only the marks that occur."""
    texts = {entry.text for section in sections for row in section.rows for entry in row}
    notes = []
    if grid := grids.sentence(rows):
        notes.append(grid)
    if rows["model_bits"].notna().any():
        notes.append(BITS_NOTE)
    if rows[BLOCK_SHARE].notna().any():
        notes.append(PARTIAL_NOTE)
    if any("±" in text for text in texts):
        notes.append(ERROR_NOTE)
    if comparisons is not None and len(comparisons):
        notes.append(f"{SIGNIFICANCE_NOTE} ({len(comparisons)}).")
    if rows[KL].notna().any():
        notes.append(DIVERGENCE_NOTE)
    if has_flips(rows):
        notes.append(FLIPS_NOTE)
    if (rows["num_seeds"] > 1).any():
        notes.append(SEEDS_NOTE)
    if rows["interpolated"].any():
        notes.append(INTERPOLATED_NOTE)
    if MISSING in texts:
        notes.append(MISSING_NOTE)
    return tuple(notes)


PARTIAL_NOTE = (
    "Of block weights: the share of its scope's weights that a row quantizes (scope.partial=true); its Bits count "
    "these alone, Stored counts all."
)
ERROR_NOTE = (
    "±: standard error over documents; it does not cover another training run.  That of Task Avg is of independent "
    "tasks: the root of the sum of their squared standard errors, divided by their number."
)
DIVERGENCE_NOTE = (
    "pplx: perplexity, the exponential of log pplx.  KL: Kullback-Leibler divergence from the unquantized model, over "
    "the whole vocabulary, in nats per token; Same top p: the share of tokens whose most likely successor is the same, "
    "in percent; both on the text of log pplx."
)
FLIPS_NOTE = (
    "Flips: of the documents behind Task Avg, in percent and tasks alike, those that the unquantized model has right "
    "and the row wrong (lost), and the other way (won)."
)
SEEDS_NOTE = (
    "Rows of several seeds: the mean over seeds.  docs: the standard error over documents, of one seed on average, as "
    "all seeds answer the same documents; seeds: the standard deviation between seeds."
)
SIGNIFICANCE_NOTE = (
    f"{BETTER} {WORSE} significantly better or worse than the explicit Baseline of the same width, or where "
    "there is none than the sliced parent, of the same grid where there is one: paired over the same documents, "
    "p < 0.05, not corrected for the number of comparisons"
)
INTERPOLATED_NOTE = f"{DAGGER} interpolated: read at a width between those it was trained for."
MISSING_NOTE = f"{MISSING} missing: not measured as this table asks, or left out for a reason given under problems."
