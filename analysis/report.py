"""A study's tables, figures, notebook and HTML page, drawn from result files.

    python -m analysis.report experiment=demo

Nothing is measured here and no model is loaded: a report can be drawn on a laptop from a copied results folder, and
drawn again while an experiment is still running; what is missing is a visible gap.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from analysis.beside import side_by_side
from analysis.contents import commands, page_of
from analysis.drawing import document, to_html, to_latex, to_markdown, to_text
from analysis.figures.style import FORMS, save_figure
from analysis.files import write_text
from analysis.gallery import plots
from analysis.load import LoadedResults, load_frame
from analysis.page import plain_page, render
from analysis.papers import kind_of
from analysis.significance import against_reference
from analysis.summary import summary
from analysis.tables import significant_marks, summary_table
from evaluation.results import ResultStore
from matquant.errors import UserError
from matquant.runs import require_writable, write_beside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from analysis.gallery import Plot
    from analysis.typeset import Table
    from matquant.config import Study

HELP = """
Draws a study from the results on disk and writes out/<experiment>/:
  table.{md,tex,html,csv}    the summary table; accuracies in the CSV are fractions, log_pplx is in nats per token
  paper.{md,tex,html,csv}    for an experiment that is a table of the paper: that table, ours beneath theirs
  comparisons.csv            every row against its baseline on the same documents: difference, standard error, p-value
  <figure>.{svg,pdf,png}     as wide as the text of a paper; <figure>_column.* as wide as a column
  report.ipynb               the same as a notebook, executed
  report.html                everything on one self-contained page, with how each number was made and what is missing
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


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    folder: Path

    @property
    def csv(self) -> Path:
        return self.folder / "table.csv"

    @property
    def comparisons(self) -> Path:
        return self.folder / "comparisons.csv"

    @property
    def notebook(self) -> Path:
        return self.folder / "report.ipynb"

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    def figure(self, name: str, form: str) -> Path:
        """`form` is svg, pdf or png."""
        return self.folder / f"{name}.{form}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if the report was written, 2 with one line on stderr if it could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to report on, such as experiment=demo")
    parser.add_argument("--no-notebook", action="store_true", help="leave the notebook out, which takes longest")
    options = parser.parse_intermixed_args(arguments)
    try:
        # Hydra takes longer to import than a table to draw, and run.py brings its own study.
        from matquant.config import load_study

        study = load_study(options.overrides)
        paths = build_report(study, options.overrides)
        if not options.no_notebook:
            from analysis.notebooks import write_report_notebook

            write_report_notebook(options.overrides, paths.notebook)
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
    loaded = load(study)
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
    loaded = load(study)
    rows = summary(loaded)
    comparisons = against_reference(rows, loaded)
    table = summary_table(rows, loaded.tasks, comparisons)
    _write_table(table, rows, paths.folder, "table")
    write_text(paths.comparisons, comparisons.to_csv(index=False))
    paper = None
    if (number := paper_number(study.name)) is not None:
        entries = side_by_side(number, rows, significant_marks(comparisons))
        paper = kind_of(entries)(number, entries)
        _write_table(paper, entries, paths.folder, "paper")
    drawn = [(plot, _write_plot(plot, paths)) for plot in plots(study, loaded, rows)]
    page = page_of(study, loaded, rows, table, paper, drawn, commands(study.name, overrides))
    write_text(paths.html, render(page))
    return paths


def load(study: Study) -> LoadedResults:
    """The results of a study, from where its setup says they are."""
    return load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))


def paper_number(name: str) -> int | None:
    """Which of the paper's tables an experiment is: 1 for `table01` and for `smollm2_table01`."""
    match = re.fullmatch(r"(?:.*[_/])?table(\d\d)", name)
    return int(match[1]) if match else None


def _write_table(table: Table, numbers: pd.DataFrame, folder: Path, name: str) -> None:
    """The four forms of a table; the LaTeX is a document that compiles on its own."""
    write_text(folder / f"{name}.md", to_markdown(table))
    write_text(folder / f"{name}.tex", document([to_latex(table)]))
    write_text(folder / f"{name}.html", plain_page(table.caption or name, [to_html(table)]))
    write_text(folder / f"{name}.csv", numbers.to_csv(index=False))


def _write_plot(plot: Plot, paths: ReportPaths) -> list[str]:
    """Every form of a figure at each of its widths; returns the SVGs, widest first."""
    drawn = []
    for width in plot.widths:
        figure = plot.draw(width)
        name = plot.name if width == max(plot.widths) else f"{plot.name}_column"
        for form in FORMS:
            save = partial(save_figure, figure, form=form)
            write_beside(paths.figure(name, form), save)
        drawn.append(paths.figure(name, "svg").read_text(encoding="utf-8"))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
