"""The tables of MatQuant (arXiv:2502.06786), ours beside theirs: one function for each kind of table.

    by_method        Data type x Method        Tables 1, 2, 6, 7, 9-14, 20, 21, 23, 24, 26-28
    by_base          Base x Method at int2     Tables 5, 22, 25, 30
    by_weights       Data type x lambda        Tables 3, 15-17
    by_distillation  Data type x Config.       Tables 4, 8, 18, 19, 29

Those are the thirty of version 3; version 1's Tables 2 and 3 are of the kinds of version 3's.

The kind of a table, and whether its columns are models or tasks, follows from its entries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.frame.names import BASE_NAMES, model_name
from analysis.frame.summary import partial_text, task_name
from analysis.tables.beside import BITS, METRICS, side_by_side, varies_weights
from analysis.tables.summary_table import (
    ERROR_NOTE,
    INTERPOLATED_NOTE,
    MISSING_NOTE,
    SEEDS_NOTE,
    SIGNIFICANCE_NOTE,
    marked,
    row_note_signs,
    row_notes,
)
from analysis.tables.typeset import DAGGER, MISSING, Entry, Section, Table, with_errors
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import BLOCK_SHARE
from matquant.notation import Objective, Slice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from analysis.published import Version

MATQUANT = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})
EXTRA = " + Extra Precision"
DOUBLE_DAGGER = "‡"
DASH = "-"
"""The paper's mark for unstable training; our own gaps have a longer dash."""
SCOPES = {"ffn": "FFN", "ffn_attention": "FFN + attention"}

NumberRow = Mapping[Any, Any]
"""A number of a table, the paper's and ours, by column name."""

Kind = Callable[[int, pd.DataFrame], Table]


def paper_table(
    number: int,
    rows: pd.DataFrame,
    marks: Mapping[Any, Mapping[str, str]] | None = None,
    *,
    version: Version = "v3",
    otherwise: Mapping[str, str] | None = None,
) -> Table:
    """Table `number` of the paper with the rows of `summary.summary`; `marks` are those of `significant_marks`."""
    entries = side_by_side(number, rows, marks, version=version, otherwise=otherwise)
    return kind_of(entries)(number, entries)


def kind_of(entries: pd.DataFrame) -> Kind:
    """The function that draws a table, which follows from the facts that its rows differ in."""
    if entries["method"].str.contains("[", regex=False).any():
        return by_distillation
    if varies_weights(entries):
        return by_weights
    return by_base if entries["base"].nunique() > 1 and set(entries["width"].map(_bits)) == {2} else by_method


def by_method(number: int, entries: pd.DataFrame) -> Table:
    """Baselines and MatQuant at every width: bfloat16, Sliced int8, Baseline, MatQuant, Single and Extra Precision."""
    return _draw(number, entries, ("Data type", "Method"), lambda row: (_data_type(row), _method(row)), _models)


def by_base(number: int, entries: pd.DataFrame) -> Table:
    """All ways to int2, for OmniQuant and for QAT."""
    return _draw(number, entries, ("Base", "Method"), lambda row: (BASE_NAMES[row["base"]], _method(row)), _models)


def by_weights(number: int, entries: pd.DataFrame) -> Table:
    """The loss re-weighting ablation: lambda of int8, int4 and int2."""
    return _draw(
        number,
        entries,
        ("Data type", "λ8, λ4, λ2"),
        lambda row: (_data_type(row), _dagger(row, row["weights"])),
        _models,
    )


def by_distillation(number: int, entries: pd.DataFrame) -> Table:
    """The co-distillation ablation; its columns are base algorithms, or with and without Extra Precision."""
    several_bases = entries["base"].nunique() > 1

    def column(row: NumberRow) -> str:
        return (
            BASE_NAMES[row["base"]] if several_bases else f"MatQuant{EXTRA}" if EXTRA in row["method"] else "MatQuant"
        )

    return _draw(
        number, entries, ("Data type", "Config."), lambda row: (f"int{_bits(row['width'])}", _config(row)), column
    )


def by_model(number: int, entries: pd.DataFrame) -> Table:
    """Any of these tables with one line for each run: the paper's models with its numbers, then our models with ours.

    The base algorithm and lambda are columns where the rows differ in them.
    """
    records = entries.assign(signs=row_note_signs(entries)).to_dict("records")
    with_weights, with_base = varies_weights(entries), entries.loc[entries["base"] != "none", "base"].nunique() > 1
    heads = ("Data type", *(["Base"] if with_base else []), "Method", *(["λ8, λ4, λ2"] if with_weights else []))
    metrics = [metric for metric in METRICS if metric in set(entries["metric"])]
    models = list(entries["model"].unique())

    def label(row: NumberRow) -> tuple[str, ...]:
        base = [BASE_NAMES.get(row["base"], "")] if with_base else []
        return (_data_type(row), *base, _method(row), *([row["weights"]] if with_weights else []))

    fields = {(label(row), row["model"], row["metric"]): row for row in records}
    groups: dict[int, dict[tuple[str, ...], None]] = {}
    for row in records:
        groups.setdefault(_bits(row["width"]), {})[label(row)] = None
    columns = [(model, metric) for model in models for metric in metrics]
    sections = []
    for labels in groups.values():
        drawn = [_column([fields.get((of_row, *column)) for of_row in labels]) for column in columns]
        rows = [(*map(Entry, of_row), *(column[place] for column in drawn)) for place, of_row in enumerate(labels)]
        sections.append(Section("", next(iter(labels))[0], tuple(rows)))
    heads = (*heads, *(HEADS.get(metric, task_name(metric)) for _, metric in columns))
    spans = (("", len(heads) - len(columns)), *((model_name(model), len(metrics)) for model in models))
    notes = (*_grid_notes(entries), *_partial_notes(entries), *row_notes(entries))
    return Table(heads, tuple(sections), notes, spans, len(heads) - len(columns), caption=_caption(number, entries))


def _column(rows: Sequence[NumberRow | None]) -> list[Entry]:
    """The entries of one model and metric within a data type: of a model that the paper does not have, ours."""
    ours = [row is not None and row["decimals"] < 0 for row in rows]
    return [_ours(row) if own else Entry(_paper_text(row)) for row, own in zip(rows, ours, strict=True)]


# --- what rows and columns are called --------------------------------------------------------------------------------


def _bits(width: str) -> int:
    return 16 if width == "full" else Slice.parse(width).bits


def _data_type(row: NumberRow) -> str:
    return "bfloat16" if row["width"] == "full" else row["width"]


def _method(row: NumberRow) -> str:
    return "unquantized" if row["width"] == "full" else _dagger(row, row["method"])


def _config(row: NumberRow) -> str:
    found = re.search(r"\[.*\]", row["method"])
    return _dagger(row, found[0] if found else "[8, 4, 2]")


def _dagger(row: NumberRow, text: str) -> str:
    """Marks a width that MatQuant was not trained for."""
    nested = row["method"].startswith("MatQuant") and row["width"] != "full"
    return f"{text} {DAGGER}" if nested and MATQUANT.is_interpolated(Slice.parse(row["width"])) else text


def _models(row: NumberRow) -> str:
    return model_name(row["model"])


# --- drawing ---------------------------------------------------------------------------------------------------------


def _draw(
    number: int,
    entries: pd.DataFrame,
    labels: tuple[str, str],
    label: Callable[[NumberRow], tuple[str, str]],
    column: Callable[[NumberRow], str],
) -> Table:
    """Two lines for each row: the paper's numbers, and below them ours with error, mark and difference."""
    records = entries.assign(signs=row_note_signs(entries)).to_dict("records")
    metrics = [metric for metric in METRICS if metric in set(entries["metric"])]
    groups = list(dict.fromkeys(map(column, records)))
    fields = {(*label(row), column(row), row["metric"]): row for row in records}
    sections: dict[Any, list[tuple[str, str]]] = {}
    for row in records:
        lines = sections.setdefault(row["base"] if labels[0] == "Base" else _bits(row["width"]), [])
        if label(row) not in lines:
            lines.append(label(row))
    drawn = tuple(
        _section(
            lines, [[fields.get((*line, group, metric)) for group in groups for metric in metrics] for line in lines]
        )
        for lines in sections.values()
    )
    heads = (*labels, "", *(HEADS.get(metric, task_name(metric)) for _ in groups for metric in metrics))
    spans = (("", 3), *((group, len(metrics)) for group in groups)) if len(groups) > 1 else ()
    return Table(heads, drawn, _notes(entries, drawn), spans, num_labels=3, lines=2, caption=_caption(number, entries))


HEADS = {BITS: "Bits", LOG_PPLX: "log pplx ↓", "task_avg": "Task Avg ↑"}


def _section(lines: Sequence[tuple[str, str]], numbers: Sequence[Sequence[NumberRow | None]]) -> Section:
    """The rows of one data type; none of the paper's numbers is bold: nobody can test what it does not print."""
    rows = []
    for (first, second), line in zip(lines, numbers, strict=True):
        theirs = (Entry(_paper_text(row), quiet=True) for row in line)
        rows.append((Entry(first), Entry(second), Entry("paper", quiet=True), *theirs))
        rows.append((Entry(""), Entry(""), Entry("ours"), *map(_ours, line)))
    return Section("", lines[0][0], tuple(rows))


def _ours(row: NumberRow | None) -> Entry:
    return Entry(_our_text(row), best=row is not None and bool(row["best"]))


def _paper_text(row: NumberRow | None) -> str:
    if row is None or row["decimals"] < 0:
        return ""
    if pd.isna(row["paper"]):
        return DASH
    return f"{row['paper']:.{row['decimals']:.0f}f}" + (f" {DOUBLE_DAGGER}" if row["error"] else "")


def _our_text(row: NumberRow | None) -> str:
    if row is None:
        return ""
    form = "2f" if row["metric"] not in (BITS, LOG_PPLX) else "3f"
    difference = "" if pd.isna(row["difference"]) else f" ({row['difference']:+.{form}})".replace("-", "−")
    several = row["num_seeds"] > 1
    text = marked(with_errors(row["ours"], row["stderr"], row["spread"], f".{form}", named=several), row["mark"])
    seeds = f" ({row['num_seeds']} seeds)" if several else ""
    return text if text == MISSING else text + seeds + row["signs"] + difference


def _caption(number: int, entries: pd.DataFrame) -> str:
    """`Table 9: per task, OmniQuant, FFN, Gemma-2 2B`."""
    runs = entries[entries["base"] != "none"]
    per_task = ["per task"] if set(entries["metric"]) > {"boolq", "piqa"} else []
    bases = " and ".join(BASE_NAMES[base] for base in runs["base"].unique())
    scope = " and ".join(SCOPES[scope] for scope in runs["scope"].unique())
    version = "" if set(entries["version"]) <= {"v3"} else ", version 1"
    return f"Table {number}{version}: " + ", ".join(
        [*per_task, bases, scope, *map(model_name, entries["model"].unique())]
    )


def _notes(entries: pd.DataFrame, sections: Iterable[Section]) -> tuple[str, ...]:
    texts = {entry.text for section in sections for row in section.rows for entry in row}
    notes = [
        f"Upper line: what MatQuant {entries['version'].iloc[0]} prints.  Lower line: measured by us, ± standard error "
        "over documents, and in brackets ours minus theirs.  Accuracies in percent; log pplx in nats per token."
    ]
    measured = int(entries["ours"].notna().sum())
    notes.append(f"{measured} of {len(entries)} numbers measured.")
    notes += _grid_notes(entries)
    notes += _otherwise_notes(entries)
    notes += _partial_notes(entries)
    if any("±" in text for text in texts):
        notes.append(ERROR_NOTE)
    if (entries["num_seeds"] > 1).any():
        notes.append(SEEDS_NOTE)
    if (entries["mark"] != "").any():
        notes.append(f"{SIGNIFICANCE_NOTE}.")
    if any(DAGGER in text for text in texts):
        notes.append(INTERPOLATED_NOTE)
    if DASH in texts:
        notes.append(f"{DASH} the paper prints a dash: training was unstable.")
    notes += [f"{DOUBLE_DAGGER} {_error_text(row)}" for row in entries[entries["error"] != ""].to_dict("records")]
    if MISSING in texts:
        notes.append(MISSING_NOTE)
    return (*notes, *row_notes(entries))


def _grid_notes(entries: pd.DataFrame) -> list[str]:
    """A sentence for the grid that all of ours share; where they differ, each of them has a note (`beside`)."""
    found = entries.loc[entries["ours"].notna() & (entries["grid"] != ""), "grid"].unique()
    return [f"Grid of ours: {found[0]}."] if len(found) == 1 else []


def _otherwise_notes(entries: pd.DataFrame) -> list[str]:
    """A sentence for the metrics that have a number of the paper and one of ours, and no difference between them."""
    both = entries[entries["ours"].notna() & entries["paper"].notna() & (entries["otherwise"] != "")]
    reasons = both.drop_duplicates(["metric", "otherwise"])
    words = [f"{task_name(metric)} {why}" for metric, why in reasons[["metric", "otherwise"]].itertuples(index=False)]
    if not words:
        return []
    return [f"Ours is another quantity than the paper's, so that no difference is printed: {'; '.join(words)}."]


def _partial_notes(entries: pd.DataFrame) -> list[str]:
    """A sentence for each run of ours that quantizes a part of its scope."""
    partial = entries[entries[BLOCK_SHARE].notna()].drop_duplicates(["model", "base", "method", "width"])
    return [
        f"Ours of {model_name(row['model'])}, {BASE_NAMES.get(row['base'], row['base'])} {row['method']} at "
        f"{row['width']}, quantizes {partial_text(row[BLOCK_SHARE])}."
        for row in partial.to_dict("records")
    ]


def _error_text(row: NumberRow) -> str:
    """A known error of the paper, in a sentence."""
    should = "is doubtful" if pd.isna(row["should_read"]) else f"should read {row['should_read']:g}"
    run = f"{model_name(row['model'])}, {row['method']}, {row['width']}, {task_name(row['metric'])}"
    return f"{run}: {row['paper']:g} {should}: {row['error']}."
