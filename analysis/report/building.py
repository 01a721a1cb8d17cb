"""The numbers of a study as tables, figures and a page: everything a report is, drawn from result files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from analysis.figures.gallery import plots
from analysis.frame.best import with_best
from analysis.frame.load import LoadedResults, load_frame
from analysis.frame.measures import with_flips
from analysis.frame.otherwise import measured_otherwise
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from analysis.page.contents import RESULT_COLUMNS, page_of
from analysis.page.drawing import render
from analysis.page.parts import ShownTable
from analysis.report.files import ReportPaths, downloads_of, write_text
from analysis.report.written import table_files, written_picture, written_table
from analysis.tables.beside import side_by_side
from analysis.tables.drawing import to_text
from analysis.tables.equal_stored import at_equal_stored, equal_stored_table
from analysis.tables.papers import kind_of
from analysis.tables.summary_table import significant_marks, summary_table, with_reference_notes
from analysis.tables.typeset import Table
from evaluation.results.store import ResultStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

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
    table = summary_table(rows, loaded.tasks, comparisons, loaded.metrics, loaded.directions)
    return Numbers(loaded, rows, comparisons, table)


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
    loaded, rows, comparisons, _ = numbers
    written = [
        write_text(paths.comparisons, comparisons.to_csv(index=False)),
        write_text(paths.results, loaded.frame[list(RESULT_COLUMNS)].to_csv(index=False)),
    ]
    tables = []
    for title, table, entries, stem in _tables(study, numbers):
        tables.append(written_table(ShownTable(title, table), entries, paths.folder / stem))
        written += table_files(paths.folder / stem)
    pictures = []
    for plot in plots(study, loaded, rows, measures):
        picture, files = written_picture(plot, paths, forms)
        pictures.append(picture)
        written += files
    page = page_of(
        *(study, loaded, rows, tables, pictures, downloads_of([paths.results])),
        overrides=overrides,
        measures=measures,
    )
    written.append(write_text(paths.html, render(page)))
    return written


def _tables(study: Study, numbers: Numbers) -> Iterator[tuple[str, Table, pd.DataFrame, str]]:
    """Title, table, numbers and name of the files of each table, in the order of the page: the paper's first."""
    loaded, rows, comparisons, table = numbers
    if (number := paper_number(study.name)) is not None:
        noted, marks = with_reference_notes(rows, comparisons), significant_marks(comparisons)
        entries = side_by_side(number, noted, marks, otherwise=measured_otherwise(loaded))
        paper = kind_of(entries)(number, entries)
        yield paper.caption, paper, entries, "paper"
    yield "Results", table, rows, "table"
    if (equal := equal_stored_table(rows)) is not None:
        yield equal.caption, equal, at_equal_stored(rows), "equal_stored"


def paper_number(name: str) -> int | None:
    """The number of the paper's table that an experiment is: 1 for `table01` and for `smollm2_table01`."""
    match = re.fullmatch(r"(?:.*[_/])?table(\d\d)", name)
    return int(match[1]) if match else None
