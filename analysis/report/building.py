"""The numbers of a study as tables, figures and a page: everything a report is, drawn from result files."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from analysis.figures.gallery import plots
from analysis.figures.style import save_figure
from analysis.frame.best import with_best
from analysis.frame.load import LoadedResults, load_frame
from analysis.frame.measures import with_flips
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from analysis.report.contents import commands, page_of
from analysis.report.files import ReportPaths, csv_of, write_text
from analysis.report.page import plain_page, render
from analysis.tables.beside import side_by_side
from analysis.tables.drawing import document, to_latex, to_markdown, to_text
from analysis.tables.equal_stored import at_equal_stored, equal_stored_table
from analysis.tables.papers import kind_of
from analysis.tables.summary_table import significant_marks, summary_table, with_reference_notes
from analysis.tables.typeset import Table
from evaluation.results.store import ResultStore
from matquant.runs.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pandas as pd

    from analysis.figures.gallery import Plot
    from matquant.config.study import Study


class Numbers(NamedTuple):
    """A study's results, its rows, every row against its reference, and the table of all that."""

    loaded: LoadedResults
    rows: pd.DataFrame
    comparisons: pd.DataFrame
    table: Table


def load(study: Study) -> LoadedResults:
    """The results of a study, from where its setup says they are."""
    return load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))


def numbers_of(study: Study) -> Numbers:
    loaded = load(study)
    rows = with_best(with_flips(summary(loaded), loaded), loaded)
    comparisons = against_reference(rows, loaded)
    return Numbers(loaded, rows, comparisons, summary_table(rows, loaded.tasks, comparisons, loaded.metrics))


def text_of(numbers: Numbers) -> str:
    """The summary table for a terminal, every problem, and how many results are missing."""
    loaded = numbers.loaded
    lines = [to_text(numbers.table)]
    if (equal := equal_stored_table(numbers.rows)) is not None:
        lines += [equal.caption, to_text(equal)]
    lines += [f"problem: {problem}" for problem in loaded.problems]
    lines += [f"other protocol: {other}" for other in loaded.others]
    if len(loaded.missing):
        lines.append(f"missing: {len(loaded.missing)} of {len(loaded.expected)} results are not measured yet")
    return "\n".join(lines)


def build(
    study: Study,
    numbers: Numbers,
    paths: ReportPaths,
    *,
    overrides: Sequence[str] | None,
    forms: Sequence[str],
    measures: Sequence[str],
) -> list[Path]:
    """Writes the files of a report and returns them; keywords as in `analysis.report.report.Report`."""
    loaded, rows, comparisons, table = numbers
    written = _write_table(table, rows, paths.folder, "table")
    if (equal := equal_stored_table(rows)) is not None:
        written += _write_table(equal, at_equal_stored(rows), paths.folder, "equal_stored")
    written.append(write_text(paths.comparisons, comparisons.to_csv(index=False)))
    paper = None
    if (number := paper_number(study.name)) is not None:
        entries = side_by_side(number, with_reference_notes(rows, comparisons), significant_marks(comparisons))
        paper = kind_of(entries)(number, entries)
        written += _write_table(paper, entries, paths.folder, "paper")
    drawn = []
    for plot in plots(study, loaded, rows, measures):
        svgs = []
        for files in _write_plot(plot, paths, forms):
            svgs.append(files[0].read_text(encoding="utf-8"))
            written += files
        drawn.append((plot, svgs))
    page = page_of(study, loaded, rows, table, (paper, equal), drawn, commands(study.name, overrides, measures))
    written.append(write_text(paths.html, render(page)))
    return written


def paper_number(name: str) -> int | None:
    """The number of the paper's table that an experiment is: 1 for `table01` and for `smollm2_table01`."""
    match = re.fullmatch(r"(?:.*[_/])?table(\d\d)", name)
    return int(match[1]) if match else None


def _write_table(table: Table, numbers: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """The four forms of a table; the LaTeX is a document that compiles on its own."""
    return [
        write_text(folder / f"{name}.md", to_markdown(table)),
        write_text(folder / f"{name}.tex", document([to_latex(table)])),
        write_text(folder / f"{name}.html", plain_page(table.caption or name, [table])),
        write_text(folder / f"{name}.csv", csv_of(numbers)),
    ]


def _write_plot(plot: Plot, paths: ReportPaths, forms: Sequence[str]) -> Iterable[list[Path]]:
    """Every form of a figure, SVG first, at each of its widths, widest first."""
    for width in plot.widths:
        figure = plot.draw(width)
        name = plot.name if width == max(plot.widths) else f"{plot.name}_column"
        files = []
        for form in forms:
            write_beside(paths.figure(name, form), partial(save_figure, figure, form=form))
            files.append(paths.figure(name, form))
        yield files
