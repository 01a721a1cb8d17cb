"""A study's table, Pareto plot and HTML page, drawn from result files.

    python -m analysis.report experiment=demo

Nothing is measured here and no model is loaded: a report can be drawn on a laptop from a copied results folder, and
drawn again while an experiment is still running; what is missing is a visible gap.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.drawing import to_html, to_markdown, to_text
from analysis.figures import pareto
from analysis.figures.style import INK, PAPER, QUIET, save_figure
from analysis.files import write_text
from analysis.load import LoadedResults, load_frame
from analysis.names import flatten, objective_text
from analysis.page import Page, Record, inline_svg, render
from analysis.significance import TASK_AVG, against_reference
from analysis.summary import Row, data_type, headline_results, summary, task_name
from analysis.tables import summary_table
from analysis.typeset import MISSING, Table, with_error
from evaluation.results import LOG_PPLX, ResultStore
from matquant.errors import UserError
from matquant.runs import require_writable, write_beside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matquant.cell import Cell
    from matquant.config import Study

HELP = """
Draws a study from the results on disk and writes out/<experiment>/:
  table.md, table.csv      the summary table; accuracies in the CSV are fractions, log_pplx is in nats per token
  comparisons.csv          every row against its baseline on the same documents: difference, standard error, p-value
  pareto.svg, .pdf, .png   Task Avg and log perplexity against effective bits
  report.html              everything on one self-contained page, with how each number was made and what is missing
"""
EXAMPLES = """
examples:
  python -m analysis.report experiment=demo                          what `python run.py experiment=demo` measured
  python -m analysis.report experiment=demo paths.results=/data/r    results copied from another machine
  python -m analysis.report experiment=demo readout.limit=200        the same cells under another protocol
  python -m analysis.report base=minmax bits=int8                    a single cell

Overrides are those of run.py (python run.py --help lists them): give the ones the results were measured with.
No model is loaded and nothing is measured; `python run.py ...` with the same overrides measures what is missing.
"""
DEFAULT_NAME = "cell"
"""What conf/config.yaml calls a study that is no experiment."""


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    folder: Path

    @property
    def markdown(self) -> Path:
        return self.folder / "table.md"

    @property
    def csv(self) -> Path:
        return self.folder / "table.csv"

    @property
    def comparisons(self) -> Path:
        return self.folder / "comparisons.csv"

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    def figure(self, form: str) -> Path:
        """`form` is svg, pdf or png."""
        return self.folder / f"pareto.{form}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if the report was written, 2 with one line on stderr if it could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to report on, such as experiment=demo")
    overrides = parser.parse_args(arguments).overrides
    try:
        # Hydra takes longer to import than a table to draw, and run.py brings its own study.
        from matquant.config import load_study

        study = load_study(overrides)
        paths = build_report(study, overrides)
        print_table(study)
        print(f"report: {paths.html}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; without this, Python complains once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def print_table(study: Study) -> None:
    """Prints the summary table, every problem, and how many results are missing."""
    loaded = _load(study)
    rows = summary(loaded)
    lines = [to_text(summary_table(rows, loaded.tasks, against_reference(rows, loaded)))]
    lines += [f"problem: {problem}" for problem in loaded.problems]
    if len(loaded.missing):
        lines.append(f"missing: {len(loaded.missing)} of {len(loaded.expected)} results are not measured yet")
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, errors="replace").decode(encoding))


def build_report(study: Study, overrides: Sequence[str] | None = None) -> ReportPaths:
    """Writes the files of a report; `overrides` is the command line to print as the way to make it again.

    Raises UserError if the folder cannot be written to.
    """
    paths = ReportPaths(study.setup.paths.out / study.name)
    require_writable(paths.folder, "paths.out")
    loaded = _load(study)
    rows = summary(loaded)
    comparisons = against_reference(rows, loaded)
    table = summary_table(rows, loaded.tasks, comparisons)
    figure = pareto.pareto_figure(rows, loaded.tasks)
    for form in ("svg", "pdf", "png"):
        write_beside(paths.figure(form), lambda beside, form=form: save_figure(figure, beside, form))
    svg = paths.figure("svg").read_text(encoding="utf-8")
    write_text(paths.markdown, to_markdown(table))
    write_text(paths.csv, rows.to_csv(index=False))
    write_text(paths.comparisons, comparisons.to_csv(index=False))
    write_text(paths.html, render(_page(study, loaded, rows, table, svg, commands(study.name, overrides))))
    return paths


def _load(study: Study) -> LoadedResults:
    return load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))


# --- what the page says ----------------------------------------------------------------------------------------------


def _page(
    study: Study, loaded: LoadedResults, rows: pd.DataFrame, table: Table, svg: str, again: Sequence[str]
) -> Page:
    theme = {INK: "ink", PAPER: "paper", QUIET: "quiet"}
    return Page(
        name=study.name,
        headlines=headlines(rows),
        measured=_measured_text(loaded),
        figure=inline_svg(
            svg, "Task Avg and log perplexity against effective bits; the table below has the numbers", theme
        ),
        table=to_html(table),
        records=[_record(cell, loaded) for cell in study.cells],
        problems=loaded.problems,
        gaps=gap_texts(loaded),
        commands=again,
    )


def headlines(rows: pd.DataFrame) -> list[list[str]]:
    """For each model: what its narrowest MatQuant read-out reaches, then the other rows of that width as rivals."""
    measured = rows[rows[TASK_AVG].notna() | rows[LOG_PPLX].notna()]
    if measured.empty:
        return [["Nothing has been measured yet."]]
    several = rows["model"].nunique() > 1
    return [
        _headline(of_model, f"{model}: " if several else "")
        for model, of_model in measured.groupby("model", sort=False)
    ]


def _headline(rows: pd.DataFrame, prefix: str) -> list[str]:
    full, reads = rows[rows["base"] == "none"], rows[(rows["base"] != "none") & ~rows["extra_precision"].astype(bool)]
    nested = reads[reads["method"].str.startswith("MatQuant")]
    candidates = nested if len(nested) else reads if len(reads) else full
    # Among several the plain MatQuant: a variant's name is longer by what it varies.
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


def _scores(row: Row) -> str:
    average = with_error(100 * row[TASK_AVG], 100 * row[f"{TASK_AVG}_stderr"], ".1f")
    return f"Task Avg {average}, log pplx {with_error(row[LOG_PPLX], float('nan'), '.2f')}"


def _measured_text(loaded: LoadedResults) -> str:
    total, missing = len(loaded.expected), len(loaded.missing)
    if missing == total:
        return f"0 of {total} results measured."
    finished, commits = loaded.frame["finished"], ", ".join(sorted(loaded.frame["commit"].unique()))
    period = f"from {finished.min()} to {finished.max()}"
    return f"{total - missing} of {total} results measured, {period}, by commit {commits}."


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
    """How the numbers of one cell were made: a row for each result, in the order of the read-out."""
    expected = loaded.expected[loaded.expected["cell_id"] == cell.id]
    keys = ["cell_id", "plan", "task"]
    results = expected[keys].merge(headline_results(loaded), on=keys)
    checkpoints = results["checkpoint"].dropna().unique()
    return Record(
        anchor=cell.id,
        title=f"{cell.id}: {', '.join(expected['label'].unique())}",
        facts={**_facts(cell), "checkpoint": ", ".join(checkpoints) or "none"},
        heads=tuple(RECORD_COLUMNS.values()),
        rows=[[_record_text(column, row) for column in RECORD_COLUMNS] for row in results.to_dict("records")],
    )


def _facts(cell: Cell) -> dict[str, str]:
    """What determines the cell's checkpoint, a line for each part: its model, base algorithm, grid, data, objective."""
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


def _record_text(column: str, row: Row) -> str:
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


def commands(name: str, overrides: Sequence[str] | None) -> list[str]:
    """How to measure what is missing and draw the report again."""
    guessed = [] if name == DEFAULT_NAME else [f"experiment={name}"]
    typed = guessed if overrides is None else list(overrides)
    return [shlex.join(["python", "run.py", *typed]), shlex.join(["python", "-m", "analysis.report", *typed])]


if __name__ == "__main__":
    sys.exit(main())
