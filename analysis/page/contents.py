"""The content of a report's page: its question and answer, the record of each number, the gaps and their commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.frame.axes import USUAL_AXES
from analysis.frame.names import flatten, objective_text
from analysis.frame.summary import SummaryRow, data_type, headline_results, task_name
from analysis.page.asked import asked_of, claim_of
from analysis.page.parts import Download, Page, Picture, Record, ShownTable
from analysis.page.won import summary_of
from analysis.tables.typeset import MISSING, with_error, with_errors
from evaluation.results.metrics import LOG_PPLX, TASK_AVG
from matquant.config.study import DEFAULT_NAME
from matquant.config.syntax.overrides import sweeps

if TYPE_CHECKING:
    from analysis.frame.load import LoadedResults
    from matquant.config.cell import Cell
    from matquant.config.study import Study


def page_of(
    study: Study,
    loaded: LoadedResults,
    rows: pd.DataFrame,
    tables: Sequence[ShownTable],
    pictures: Sequence[Picture],
    results: Sequence[Download],
    *,
    overrides: Sequence[str] | None,
    measures: Sequence[str] = USUAL_AXES,
) -> Page:
    """The page; `results`: all results as files.  Keywords as in `analysis.report.report.Report`."""
    return Page(
        name=study.name,
        claim=claim_of(overrides),
        asked=asked_of(loaded, study.setup.readout),
        summary=summary_of(rows, loaded),
        headlines=headlines(rows),
        measured=measured_text(loaded),
        pictures=pictures,
        tables=tables,
        records=[_record(cell, loaded) for cell in study.cells],
        results=results,
        provenance=provenance_rows(loaded),
        problems=[*loaded.problems, *loaded.others],
        gaps=gap_texts(loaded),
        commands=commands(study.name, overrides, measures),
    )


def provenance_rows(loaded: LoadedResults) -> list[tuple[str, str]]:
    """The provenance of all numbers: commits, devices, versions, time and the cells that are missing."""
    results = loaded.frame.drop_duplicates(["cell_id", "plan", "task"])
    seconds = pd.to_numeric(results["seconds"], errors="coerce").sum()
    cells = loaded.expected.groupby("cell_id", sort=False).size()
    gaps = loaded.missing.groupby("cell_id").size().reindex(cells.index, fill_value=0)

    def counted(column: str, results: pd.DataFrame = results) -> str:
        counts = results[column].fillna("unknown").replace("", "unknown").value_counts()
        return "; ".join(f"{name} ({count} results)" for name, count in counts.items()) or "none yet"

    return [
        ("commits", counted("commit")),
        ("devices", counted("device")),
        ("versions", counted("versions")),
        # Log perplexity is our own: where no task was asked, lm-eval had no part.
        *(
            [("lm-eval", counted("lm_eval", results[~results["task"].str.startswith(LOG_PPLX)]))]
            if loaded.tasks
            else []
        ),
        ("evaluation", f"{seconds / 60:.1f} minutes in all, {len(results)} results"),
        (
            "cells",
            f"{int((gaps == 0).sum())} complete, {int(((gaps > 0) & (gaps < cells)).sum())} in part, "
            f"{int((gaps == cells).sum())} missing",
        ),
    ]


def headlines(rows: pd.DataFrame) -> list[list[str]]:
    """Sentences for each model: its narrowest MatQuant read-out, then the other rows of that width as rivals."""
    measured = rows[rows[TASK_AVG].notna() | rows[LOG_PPLX].notna()]
    if measured.empty:
        return [["Nothing has been measured yet."]]
    several = rows["model"].nunique() > 1
    return [
        _headline(of_model, f"{model}: " if several else "")
        for model, of_model in measured.groupby("model", sort=False)
    ]


def _headline(rows: pd.DataFrame, prefix: str) -> list[str]:
    full, quantized = rows[rows["base"] == "none"], rows[rows["base"] != "none"]
    plain = quantized[~quantized["extra_precision"].astype(bool)]
    reads = plain if len(plain) else quantized
    nested = reads[reads["method"].str.startswith("MatQuant")]
    candidates = nested if len(nested) else reads if len(reads) else full
    # Of several the plain MatQuant, which has the shortest name: a variant adds to it.
    width = candidates[candidates["bits"] == candidates["bits"].min()]
    first = width.loc[width["method"].str.len().idxmin()]
    rivals = reads[(reads["plan"] == first["plan"]) & (reads.index != first.name)]
    full = full[full.index != first.name]
    what = ", unquantized" if first["base"] == "none" else f" read out of {first['label']}"
    return [
        f"{prefix}{data_type(first)}{what}: {_scores(first)}.",
        *(f"{row['label']} at {row['plan']}: {_scores(row)}." for row in rivals.to_dict("records")),
        *(f"Unquantized ({row['method']}): {_scores(row)}." for row in full.to_dict("records")),
    ]


def _scores(row: SummaryRow) -> str:
    several = row["num_seeds"] > 1
    value, stderr, spread = (100 * row[f"{TASK_AVG}{kind}"] for kind in ("", "_stderr", "_spread"))
    average = with_errors(value, stderr, spread, ".1f", named=several)
    average += f" ({row['num_seeds']} seeds)" if several else ""
    return f"Task Avg {average}, log pplx {with_error(row[LOG_PPLX], float('nan'), '.2f')}"


def measured_text(loaded: LoadedResults) -> str:
    total, missing = len(loaded.expected), len(loaded.missing)
    if missing == total:
        return f"0 of {total} results measured."
    finished, commits = loaded.frame["finished"], ", ".join(sorted(loaded.frame["commit"].unique()))
    period = f"from {finished.min()} to {finished.max()}"
    return f"{total - missing} of {total} results measured, {period}, by commit {commits}."


RESULT_COLUMNS = (
    *("cell_id", "model", "label", "plan", "task", "metric", "value", "stderr", "num_documents", "limit", "batch_size"),
    *("dtype", "data", "lm_eval", "protocol_id", "checkpoint", "device", "seconds", "finished", "commit"),
)
"""The columns of a result in the file of all results; fractions and nats."""
RECORD_COLUMNS = {
    "plan": "plan",
    "task": "task",
    "metric": "metric",
    "num_documents": "documents",
    "limit": "limit",
    "batch_size": "batch size",
    "dtype": "dtype",
    "data": "data revision",
    "lm_eval": "lm-eval",
    "protocol_id": "protocol",
    "device": "device",
    "seconds": "seconds",
    "finished": "finished",
    "commit": "commit",
}


def _record(cell: Cell, loaded: LoadedResults) -> Record:
    """The record of one cell's numbers: a row for each result, in the order of the read-out."""
    expected = loaded.expected[loaded.expected["cell_id"] == cell.id]
    keys = ["cell_id", "plan", "task"]
    results = expected[keys].merge(headline_results(loaded), on=keys)
    checkpoints = results["checkpoint"].dropna().unique()
    return Record(
        anchor=cell.id,
        title=f"{cell.id}: {', '.join(expected['label'].unique())}",
        facts={**_facts(cell), **_contents(results), "checkpoint": ", ".join(checkpoints) or "none"},
        heads=tuple(RECORD_COLUMNS.values()),
        rows=[[_record_text(column, row) for column in RECORD_COLUMNS] for row in results.to_dict("records")],
    )


def _contents(results: pd.DataFrame) -> dict[str, str]:
    """The fingerprint of the model that was read, its first digits; nothing where no result has one."""
    parts = [str(text).partition(":") for text in results["model_content"].dropna().unique()]
    return {"model content": ", ".join(f"{kind}{colon}{digits[:8]}" for kind, colon, digits in parts)} if parts else {}


def _facts(cell: Cell) -> dict[str, str]:
    """The facts that determine the cell's checkpoint, a line for each: model, base algorithm, grid, data, objective."""
    facts = {"cell id": cell.id}
    for name, value in cell.model_dump(mode="json", exclude={"objective"}, exclude_none=True).items():
        facts[name] = _part_text(value) if isinstance(value, dict) else str(value)
    if cell.objective is not None:
        facts["objective"] = f"{objective_text(cell.objective)} in an int{cell.objective.parent_bits} parent"
    return facts


def _part_text(part: Mapping[str, Any]) -> str:
    """`omniquant, num_steps 48, batch_size 4`: the kind first, then every setting."""
    settings = [f"{key} {text}" for key, text in flatten(part) if key != "kind"]
    return ", ".join([*([part["kind"]] if "kind" in part else []), *settings])


def _record_text(column: str, row: SummaryRow) -> str:
    value = row[column]
    if column == "limit" and row["task"] != LOG_PPLX and pd.isna(value):
        return "all"
    if column == "task":
        return task_name(value)
    return MISSING if pd.isna(value) else str(value)


def gap_texts(loaded: LoadedResults) -> list[str]:
    """A line for each read-out with missing results, and one for a cell that has none at all."""
    texts = []
    for cell_id, missing in loaded.missing.groupby("cell_id", sort=False):
        expected = loaded.expected[loaded.expected["cell_id"] == cell_id]
        if len(missing) == len(expected):
            texts.append(f"{cell_id} ({', '.join(expected['label'].unique())}): nothing measured yet")
            continue
        for plan, tasks in missing.groupby("plan", sort=False)["task"]:
            texts.append(f"{cell_id} at {plan}: {', '.join(map(task_name, tasks))}")
    return texts


def option_of(measures: Sequence[str]) -> list[str]:
    """The option that asks for these measures on the axes of Pareto plots; nothing for the usual ones."""
    return [] if tuple(measures) == USUAL_AXES else ["--pareto", ",".join(measures)]


def commands(name: str, overrides: Sequence[str] | None, measures: Sequence[str] = USUAL_AXES) -> list[str]:
    """The commands that measure what is missing and draw the report again."""
    guessed = [] if name == DEFAULT_NAME else [f"experiment={name}"]
    typed = guessed if overrides is None else list(overrides)
    multirun = ["-m"] if sweeps(typed) else []
    report = ["matquant", "report", *typed, *option_of(measures)]
    return [shlex.join(["python", "run.py", *multirun, *typed]), shlex.join(report)]
