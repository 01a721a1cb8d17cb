"""All thirty tables of MatQuant (arXiv:2502.06786v3), ours beside theirs, from results on disk.

Table 1 is that of the cells of `experiment=table01`, and so on; a number that was not measured is a visible gap.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.frame.best import with_best
from analysis.frame.load import load_frame
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from analysis.page.drawing import plain_page
from analysis.page.parts import ShownTable
from analysis.published import NUM_TABLES
from analysis.report.files import write_text
from analysis.report.written import written_table
from analysis.tables.beside import side_by_side
from analysis.tables.drawing import document, to_latex, to_markdown
from analysis.tables.papers import kind_of
from analysis.tables.summary_table import significant_marks, with_reference_notes
from evaluation.results.store import ResultStore
from matquant.command.parsing import parse
from matquant.errors import UserError
from matquant.runs.files import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analysis.frame.load import LoadedResults
    from analysis.tables.typeset import Table
    from matquant.config.study import Study

FOLDER = "papers"
NUMBER = re.compile(r"(?:table)?0*([0-9]+)")
"""A table by its number, or as its experiment is called: `table01`."""


def table_of(study: Study, number: int) -> tuple[Table, pd.DataFrame, LoadedResults]:
    """Table `number` with the results of a study: as text, as numbers, and the results themselves."""
    loaded = load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))
    rows = with_best(summary(loaded), loaded)
    comparisons = against_reference(rows, loaded)
    entries = side_by_side(number, with_reference_notes(rows, comparisons), significant_marks(comparisons))
    return kind_of(entries)(number, entries), entries, loaded


def write_all(numbers: Sequence[int], overrides: Sequence[str]) -> Path:
    """Writes the tables, and all of them together as tables.md, tables.tex and tables.html; returns their folder."""
    from matquant.config.study import load_study

    drawn = []
    folder = Path()
    for number in numbers:
        study = load_study([f"experiment=table{number:02}", *overrides])
        folder = study.setup.paths.out / FOLDER
        require_writable(folder, "paths.out")
        table, entries, loaded = table_of(study, number)
        drawn.append(
            written_table(ShownTable(table.caption, table), entries, folder / f"table{number:02}", is_document=False)
        )
        measured = int(entries["ours"].notna().sum())
        print(f"{table.caption}: {measured} of {len(entries)} numbers measured")
        for problem in loaded.problems:
            print(f"  problem: {problem}")
        for other in loaded.others:
            print(f"  other protocol: {other}")
    write_text(folder / "tables.md", "\n".join(to_markdown(shown.table) for shown in drawn))
    write_text(folder / "tables.tex", document([to_latex(shown.table) for shown in drawn]))
    write_text(folder / "tables.html", plain_page("The tables of MatQuant, ours beside theirs", drawn))
    return folder


def main(arguments: Sequence[str]) -> None:
    choices = parse("tables", arguments).choices
    named = {choice: NUMBER.fullmatch(choice) for choice in choices}
    numbers = [int(found[1]) for found in named.values() if found is not None]
    for number in numbers:
        if not 1 <= number <= NUM_TABLES:
            raise UserError(f"there is no table {number}; choose from 1 to {NUM_TABLES}")
    overrides = [choice for choice, found in named.items() if found is None]
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"there is no table {word}; tables are numbers from 1 to {NUM_TABLES}: matquant tables 1")
    if any(choice.startswith("experiment=") for choice in overrides):
        raise UserError(
            "tables are those of the paper, by number; for another experiment type matquant report experiment=..."
        )
    folder = write_all(numbers or range(1, NUM_TABLES + 1), overrides)
    print(f"tables: {folder / 'tables.html'}")
