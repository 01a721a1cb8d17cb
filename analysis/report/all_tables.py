"""All tables of MatQuant (arXiv:2502.06786) and of MatGPTQ's speed (arXiv:2602.03537), ours beside theirs.

Table 1 is that of the cells of `experiment=table01`, version 1's Table 2 of `experiment=v1_table02`, and so on, from
results on disk; a number that was not measured is a visible gap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.frame.best import with_best
from analysis.frame.load import load_frame
from analysis.frame.otherwise import measured_otherwise
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from analysis.page.drawing import plain_page
from analysis.page.parts import ShownTable
from analysis.published import NUM_TABLES, SPEEDS, V1_TABLES, Speed, Version
from analysis.report.files import write_text
from analysis.report.written import written_table
from analysis.tables.beside import side_by_side
from analysis.tables.drawing import document, to_latex, to_markdown
from analysis.tables.papers import kind_of
from analysis.tables.speed import entries_of, missing, speed_table
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
NUMBER = re.compile(r"(v1_)?(?:table)?0*([0-9]+)")
"""A table by its number, or as its experiment is called: `table01`, `v1_table02`."""
SPEED = re.compile(r"(?:matgptq_)?(kernel|vllm)")


@dataclass(frozen=True)
class PaperTable:
    """One of MatQuant's tables: its number in a version of the paper, and the experiment that measures it."""

    number: int
    version: Version = "v3"

    @property
    def name(self) -> str:
        return f"{'' if self.version == 'v3' else f'{self.version}_'}table{self.number:02}"

    @property
    def is_there(self) -> bool:
        return 1 <= self.number <= NUM_TABLES if self.version == "v3" else self.number in V1_TABLES


ALL_TABLES = (
    *(PaperTable(number) for number in range(1, NUM_TABLES + 1)),
    *(PaperTable(number, "v1") for number in V1_TABLES),
)


def table_of(study: Study, number: int, version: Version = "v3") -> tuple[Table, pd.DataFrame, LoadedResults]:
    """Table `number` with the results of a study: as text, as numbers, and the results themselves."""
    loaded = load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))
    rows = with_best(summary(loaded), loaded)
    comparisons = against_reference(rows, loaded)
    noted = with_reference_notes(rows, comparisons)
    marks = significant_marks(comparisons)
    entries = side_by_side(number, noted, marks, version=version, otherwise=measured_otherwise(loaded))
    return kind_of(entries)(number, entries), entries, loaded


def write_all(tables: Sequence[PaperTable], speeds: Sequence[Speed], overrides: Sequence[str]) -> Path:
    """Writes the tables, and all of them together as tables.md, tables.tex and tables.html; returns their folder."""
    from matquant.config.study import load_study

    drawn = []
    folder = Path()
    for one in tables:
        study = load_study([f"experiment={one.name}", *overrides])
        folder = _folder_of(study)
        table, entries, loaded = table_of(study, one.number, one.version)
        drawn.append(written_table(ShownTable(table.caption, table), entries, folder / one.name, is_document=False))
        measured = int(entries["ours"].notna().sum())
        print(f"{table.caption}: {measured} of {len(entries)} numbers measured")
        for problem in loaded.problems:
            print(f"  problem: {problem}")
        for other in loaded.others:
            print(f"  other protocol: {other}")
    for name in speeds:
        folder = folder if drawn else _folder_of(load_study(overrides))
        table, entries = speed_table(name), entries_of(name)
        shown = ShownTable(table.caption, table)
        drawn.append(written_table(shown, entries, folder / f"matgptq_{name}", is_document=False))
        print(table.caption)
        for gap in missing(name, entries):
            print(f"  {gap}")
    write_text(folder / "tables.md", "\n".join(to_markdown(shown.table) for shown in drawn))
    write_text(folder / "tables.tex", document([to_latex(shown.table) for shown in drawn]))
    write_text(folder / "tables.html", plain_page("The tables of MatQuant and MatGPTQ, ours beside theirs", drawn))
    return folder


def _folder_of(study: Study) -> Path:
    folder = study.setup.paths.out / FOLDER
    require_writable(folder, "paths.out")
    return folder


def main(arguments: Sequence[str]) -> None:
    choices = parse("tables", arguments).choices
    tables = [
        PaperTable(int(found[2]), "v1" if found[1] else "v3") for found in map(NUMBER.fullmatch, choices) if found
    ]
    speeds: list[Speed] = [_speed(found[1]) for found in map(SPEED.fullmatch, choices) if found]
    if unknown := [one for one in tables if not one.is_there]:
        name = f"{'v1_' if unknown[0].version == 'v1' else ''}{unknown[0].number}"
        raise UserError(f"there is no table {name}; choose from 1 to {NUM_TABLES}, v1_2, v1_3, kernel and vllm")
    overrides = [choice for choice in choices if not NUMBER.fullmatch(choice) and not SPEED.fullmatch(choice)]
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"there is no table {word}; tables are numbers from 1 to {NUM_TABLES}, v1_2 and v1_3, and MatGPTQ's "
                "kernel and vllm: matquant tables 1 kernel"
            )
    if any(choice.startswith("experiment=") for choice in overrides):
        raise UserError(
            "tables are those of the papers, by name; for another experiment type matquant report experiment=..."
        )
    if not tables and not speeds:
        tables, speeds = [*ALL_TABLES], list(SPEEDS)
    folder = write_all(tables, speeds, overrides)
    print(f"tables: {folder / 'tables.html'}")


def _speed(text: str) -> Speed:
    return "kernel" if text == "kernel" else "vllm"
