"""The summary table: every read-out of every cell with its tasks, their average and log perplexity.

Numbers and type are apart.  `summary` makes a frame of numbers (fractions and nats), `typeset` makes it text the way a
paper prints it, and `to_text`, `to_markdown`, `to_html` draw the same text for a terminal, a repository and a page.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.load import COST_COLUMNS, IDENTITY_COLUMNS, LOG_PPLX
from analysis.significance import LEVEL, TASK_AVG
from evaluation.results import HEADLINE_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from analysis.load import LoadedResults

Row = Mapping[Any, Any]
"""A row of `summary`, by column name."""

METHOD_ORDER = ("Sliced", "Baseline", "Single Precision", "MatQuant")
TASK_NAMES = {
    "arc_challenge": "ARC-c",
    "arc_easy": "ARC-e",
    "boolq": "BoolQ",
    "hellaswag": "HellaSwag",
    "piqa": "PIQA",
    "winogrande": "WinoGrande",
    LOG_PPLX: "log pplx",
}
MISSING = "\u2013"
"""An en dash: what a printed table puts in an empty field."""

DAGGER = "†"
BETTER, WORSE = "▲", "▼"


# --- numbers ---------------------------------------------------------------------------------------------------------


def summary(loaded: LoadedResults) -> pd.DataFrame:
    """A row per (configuration, plan), wide to narrow, methods in the paper's order; NaN where a result is missing.

    Columns: IDENTITY_COLUMNS, COST_COLUMNS, `num_seeds`, and for each task, `task_avg` and `log_pplx` the value
    and its `_stderr`.  Configurations that differ only in their seed are one row: the mean, and as its error the
    standard deviation between seeds instead of the standard error over documents.
    """
    reads = loaded.expected.drop(columns="task").drop_duplicates(["cell_id", "plan"])
    rows = reads.merge(_wide(loaded), on=["cell_id", "plan"], how="left")
    rows["effective_bits"] = rows["effective_bits"].fillna(rows["bits"].where(~rows["extra_precision"].astype(bool)))
    errors = rows[[f"{task}_stderr" for task in loaded.tasks]]
    rows[TASK_AVG] = rows[list(loaded.tasks)].mean(axis=1, skipna=False)
    rows[f"{TASK_AVG}_stderr"] = stderr_of_mean(errors.to_numpy(dtype=float))
    rows.loc[rows[TASK_AVG].isna(), f"{TASK_AVG}_stderr"] = np.nan
    values = [*loaded.tasks, TASK_AVG, LOG_PPLX]
    merged = [_over_seeds(seeds, values) for _, seeds in rows.groupby(["config_id", "plan"], sort=False)]
    columns = [*IDENTITY_COLUMNS, *COST_COLUMNS, "num_seeds", *(c for v in values for c in (v, f"{v}_stderr"))]
    return _in_paper_order(pd.DataFrame(merged, columns=columns))


def stderr_of_mean(stderrs: np.ndarray) -> np.ndarray:
    """Standard error of the plain mean of n independent estimates, along the last axis: sqrt(sum se_i^2) / n."""
    if stderrs.shape[-1] == 0:
        return np.full(stderrs.shape[:-1], np.nan)
    return np.sqrt(np.square(stderrs).sum(axis=-1)) / stderrs.shape[-1]


def headline_results(loaded: LoadedResults) -> pd.DataFrame:
    """The rows of the frame that stand for their task: one for each (cell, plan, task), of its headline metric."""
    frame = loaded.frame[loaded.frame["metric"].isin(HEADLINE_METRICS)]
    rank = frame["metric"].map({metric: rank for rank, metric in enumerate(HEADLINE_METRICS)})
    chosen = rank.groupby([frame["cell_id"], frame["plan"], frame["task"]], sort=False).idxmin()
    return frame.loc[chosen]


def _wide(loaded: LoadedResults) -> pd.DataFrame:
    """A row per measured (cell, plan): its bits, and for each task its value and standard error."""
    long = headline_results(loaded).set_index(["cell_id", "plan"])
    wide = long[list(COST_COLUMNS)].astype(float).groupby(level=[0, 1]).first()
    for task in (*loaded.tasks, LOG_PPLX):
        of_task = long[long["task"] == task]
        wide[task] = of_task["value"].astype(float)
        wide[f"{task}_stderr"] = of_task["stderr"].astype(float)
    return wide.reset_index()


def _over_seeds(seeds: pd.DataFrame, values: Sequence[str]) -> pd.Series:
    """One row out of the rows of a configuration's seeds, those of them that have any result."""
    measured = seeds[seeds[list(values)].notna().any(axis=1)]
    seeds = measured if len(measured) else seeds.iloc[:1]
    row = seeds.iloc[0].copy()
    row["num_seeds"] = len(seeds)
    if len(seeds) > 1:
        row["cell_id"] = ", ".join(seeds["cell_id"])
        for column in COST_COLUMNS:
            row[column] = seeds[column].mean()
        for value in values:
            row[value] = seeds[value].mean()
            row[f"{value}_stderr"] = seeds[value].std(ddof=1)
    return row


def method_rank(method: str) -> int:
    """Position of a method among the rows of one data type; a model without quantization comes first."""
    return next((rank for rank, name in enumerate(METHOD_ORDER, start=1) if method.startswith(name)), 0)


def _in_paper_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Model by model, wide to narrow, methods in the paper's order; ties stay as the experiment lists them."""
    models = {model: place for place, model in enumerate(rows["model"].unique())}
    keys = pd.DataFrame(
        {
            "model": rows["model"].map(models),
            "bits": -rows["bits"],
            "extra_precision": rows["extra_precision"],
            "method": rows["method"].map(method_rank),
            "variant": rows["method"].str.len(),
        }
    )
    return rows.loc[keys.sort_values(list(keys.columns), kind="stable").index].reset_index(drop=True)


def task_name(task: str) -> str:
    """What a table calls a task: the paper's name for it, or its own."""
    return TASK_NAMES.get(task, task)


def data_type(row: Row) -> str:
    """The width a row is read at, as the paper's first column names it: `int2`, or `bfloat16` for the full model."""
    return row["method"] if row["base"] == "none" else row["plan"]


# --- type ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One printed entry; `best` marks the best value of its data type."""

    text: str
    best: bool = False

    @property
    def missing(self) -> bool:
        return self.text == MISSING


@dataclass(frozen=True)
class Section:
    """The rows of one model and data type, between two rules."""

    model: str
    data_type: str
    rows: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True)
class Table:
    """A table as text: column heads, sections from wide to narrow, and the notes that explain its marks."""

    heads: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A head, the text of a row's entry, and the sign that makes the larger value the better one (0: no contest)."""

    head: str
    text: Callable[[Row], str]
    key: str = ""
    sign: int = 0


GRID, OVERFLOW, STORED = "+ grid", "+ overflow", "Stored"
BITS_NOTE = (
    "Bits: the paper's count, per quantized weight; what it leaves out stands beside it.  + grid: scales, zeros and "
    "transformation; + overflow: which weights are in the overflow bucket; Stored: everything, per parameter of the "
    "whole model, unquantized ones in 16 bits."
)
NUM_LABELS = 2
"""How many columns at the left hold names; the others hold numbers."""


def typeset(rows: pd.DataFrame, tasks: Sequence[str], comparisons: pd.DataFrame | None = None) -> Table:
    """Turns the numbers of `summary` into the text of a table.

    `comparisons`: what `significance.against_reference` found; significant differences are marked.
    """
    rows = rows.assign(marks=pd.Series({index: _marks(comparisons, index) for index in rows.index}, dtype=object))
    columns = (
        Column("Data type", data_type),
        Column("Method", _method_text),
        Column("Bits", _bits("effective_bits")),
        Column(GRID, _bits("grid_bits")),
        *([Column(OVERFLOW, _bits("overflow_bits"))] if (rows["overflow_bits"] > 0).any() else []),
        Column(STORED, _bits("model_bits")),
        *(Column(task_name(task), _percent_of(task), task, +1) for task in tasks),
        Column("Task Avg ↑", _percent_of(TASK_AVG, shows_error=True), TASK_AVG, +1),
        Column("log pplx ↓", _nats, LOG_PPLX, -1),
    )
    groups = rows.groupby([rows["model"], rows.apply(data_type, axis=1)], sort=False) if len(rows) else ()
    sections = tuple(_section(str(model), str(name), group, columns) for (model, name), group in groups)
    return Table(tuple(column.head for column in columns), sections, _notes(rows, sections, comparisons))


def _marks(comparisons: pd.DataFrame | None, index: Any) -> dict[str, str]:
    """For each task in which a row differs significantly from its reference: better or worse."""
    if comparisons is None or index not in comparisons.index:
        return {}
    found = comparisons.loc[[index]]
    found = found[found["p_value"] < LEVEL]
    higher = (found["difference"] > 0) != (found["task"] == LOG_PPLX)
    return {task: BETTER if good else WORSE for task, good in zip(found["task"], higher, strict=True)}


def _section(model: str, name: str, group: pd.DataFrame, columns: Sequence[Column]) -> Section:
    texts = [[column.text(row) for column in columns] for row in group.to_dict("records")]
    contest = len(group) > 1 and (group["base"] != "none").all()
    winners = [_winners([text[i] for text in texts], column) if contest else set() for i, column in enumerate(columns)]
    rows = tuple(
        tuple(Entry(text, best=number in winners[i]) for i, text in enumerate(row)) for number, row in enumerate(texts)
    )
    return Section(model, name, rows)


def _winners(texts: Sequence[str], column: Column) -> set[int]:
    """The rows with the best value as printed, so that two equal entries are both marked or neither."""
    printed = {
        row: column.sign * float(text.split()[0]) for row, text in enumerate(texts) if text != MISSING and column.sign
    }
    return {row for row, value in printed.items() if value == max(printed.values())} if len(printed) > 1 else set()


def _method_text(row: Row) -> str:
    seeds = f", {row['num_seeds']} seeds" if row["num_seeds"] > 1 else ""
    name = "unquantized" if row["base"] == "none" else row["label"]
    return name + (f" {DAGGER}" if row["interpolated"] else "") + seeds


def _bits(column: str) -> Callable[[Row], str]:
    return lambda row: with_error(row[column], np.nan, ".4g")


def _percent_of(value: str, *, shows_error: bool = False) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        error = 100 * row[f"{value}_stderr"] if shows_error else np.nan
        return _marked(with_error(100 * row[value], error, ".1f"), row, value)

    return text


def _nats(row: Row) -> str:
    return _marked(with_error(row[LOG_PPLX], row[f"{LOG_PPLX}_stderr"], ".3f"), row, LOG_PPLX)


def _marked(text: str, row: Row, value: str) -> str:
    mark = row["marks"].get(value)
    return text if mark is None or text == MISSING else f"{text} {mark}"


def with_error(value: float, error: float, form: str) -> str:
    """`38.1 ± 0.9`, without the error where there is none, and a gap where there is no value."""
    if pd.isna(value):
        return MISSING
    return f"{value:{form}}" + ("" if pd.isna(error) else f" ± {error:{form}}")


def _notes(rows: pd.DataFrame, sections: Sequence[Section], comparisons: pd.DataFrame | None) -> tuple[str, ...]:
    """The legend: only the marks that occur."""
    entries = [entry for section in sections for row in section.rows for entry in row]
    notes = ["Tasks and Task Avg in percent, higher is better; log pplx in nats per token, lower is better."]
    if rows["model_bits"].notna().any():
        notes.append(BITS_NOTE)
    if any("±" in entry.text for entry in entries):
        notes.append("±: standard error over documents; it does not cover another training run.")
    if comparisons is not None and len(comparisons):
        notes.append(
            f"{BETTER} {WORSE} significantly better or worse than the explicit Baseline of the same width, or where "
            "there is none than the sliced parent: paired over the same documents, p < 0.05, not corrected for the "
            f"number of comparisons ({len(comparisons)})."
        )
    if (rows["num_seeds"] > 1).any():
        notes.append("Rows of several seeds: mean ± standard deviation between seeds.")
    if rows["interpolated"].any():
        notes.append(f"{DAGGER} interpolated: read at a width it was not trained for.")
    if any(entry.missing for entry in entries):
        notes.append(f"{MISSING} missing: not measured yet, or left out for a reason given under problems.")
    return tuple(notes)


# --- drawing ---------------------------------------------------------------------------------------------------------

BOLD_NOTE = "Bold: the best value, as printed, among the rows of a data type."
NOTE_WIDTH = 130
METHOD_WIDTH = 30
"""Characters; a longer method name goes on in the next line, so that a terminal of 137 columns holds the table."""


def to_text(table: Table) -> str:
    """Aligned columns for a terminal, a blank line between data types; what Stored is made of is left to the page."""
    table = _without(table, {GRID, OVERFLOW})
    blocks = []
    for section in table.sections:
        lines: list[list[str]] = []
        for row in section.rows:
            first, *more = textwrap.wrap(row[1].text, METHOD_WIDTH) or [""]
            lines.append([row[0].text if not lines else "", first, *(entry.text for entry in row[2:])])
            lines += [["", f"  {part}", *[""] * (len(row) - 2)] for part in more]
        blocks.append(lines)
    widths = [
        max(len(line[i]) for line in [[*table.heads], *(line for lines in blocks for line in lines)])
        for i in range(len(table.heads))
    ]
    drawn = [_text_line(table.heads, widths), "  ".join("-" * width for width in widths)]
    for number, (section, lines) in enumerate(zip(table.sections, blocks, strict=True)):
        if _starts_model(table, number):
            drawn += ["", f"{section.model}"]
        drawn += ["", *(_text_line(line, widths) for line in lines)]
    return "\n".join([*drawn, "", *(line for note in table.notes for line in textwrap.wrap(note, NOTE_WIDTH))])


def _without(table: Table, heads: Container[str]) -> Table:
    """A table without some of its columns."""
    kept = [number for number, head in enumerate(table.heads) if head not in heads]
    sections = [
        replace(section, rows=tuple(tuple(row[number] for number in kept) for row in section.rows))
        for section in table.sections
    ]
    return replace(table, heads=tuple(table.heads[number] for number in kept), sections=tuple(sections))


def _text_line(texts: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    sides = ["<" if i < NUM_LABELS else ">" for i in range(len(texts))]
    return "  ".join(f"{text:{side}{width}}" for text, side, width in zip(texts, sides, widths, strict=True)).rstrip()


def _starts_model(table: Table, number: int) -> bool:
    """True for the first section of each model, if there are several models to tell apart."""
    models = [section.model for section in table.sections]
    return len(set(models)) > 1 and (number == 0 or models[number] != models[number - 1])


def to_markdown(table: Table) -> str:
    """A GitHub table, the best value of each data type in bold, the notes as a list below."""
    drawn = [
        _markdown_line(table.heads),
        "|" + "|".join("---" if i < NUM_LABELS else "--:" for i in range(len(table.heads))) + "|",
    ]
    for number, section in enumerate(table.sections):
        if _starts_model(table, number):
            drawn.append(_markdown_line([f"**{_markdown_escape(section.model)}**", *[""] * (len(table.heads) - 1)]))
        for row in section.rows:
            drawn.append(_markdown_line([_markdown_entry(entry) for entry in row]))
    return "\n".join([*drawn, "", *(f"- {note}" for note in (*table.notes, BOLD_NOTE)), ""])


def _markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _markdown_entry(entry: Entry) -> str:
    text = _markdown_escape(entry.text)
    return f"**{text}**" if entry.best else text


def _markdown_escape(text: str) -> str:
    return "".join(f"\\{mark}" if mark in "\\|*_`<>[]" else mark for mark in text)


def to_html(table: Table) -> str:
    """A `<table>` a model, without style of its own: classes name what an entry is (`best`, `missing`)."""
    models = dict.fromkeys(section.model for section in table.sections)
    captions = {model: f"<caption>{html.escape(model)}</caption>" if len(models) > 1 else "" for model in models}
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in table.heads)
    drawn = [
        f"<table>{caption}\n<thead><tr>{heads}</tr></thead>\n"
        + "\n".join(_html_body(section) for section in table.sections if section.model == model)
        + "\n</table>"
        for model, caption in captions.items()
    ]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in (*table.notes, BOLD_NOTE))
    return "\n".join([*drawn, f'<ul class="notes">{notes}</ul>'])


def _html_body(section: Section) -> str:
    rows = "\n".join(f"<tr>{''.join(_html_entry(entry) for entry in row)}</tr>" for row in section.rows)
    return f"<tbody>{rows}</tbody>"


def _html_entry(entry: Entry) -> str:
    if entry.missing:
        return f'<td class="missing" title="missing">{MISSING}</td>'
    text = html.escape(entry.text)
    return f'<td class="best">{text}</td>' if entry.best else f"<td>{text}</td>"
