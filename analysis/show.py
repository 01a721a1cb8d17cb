"""What notebooks show: each function returns something that a cell displays, and `print` shows as text.

from analysis import show

study = show.open_study("experiment=demo")
study.table()
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from analysis import published
from analysis.compare import pairs_of
from analysis.contents import gap_texts, headlines, provenance_rows
from analysis.drawing import to_html, to_text
from analysis.figures.style import TEXT, save_figure
from analysis.gallery import Plot, plots
from analysis.load import load_frame
from analysis.papers import paper_table
from analysis.significance import against_reference
from analysis.summary import summary
from analysis.tables import significant_marks, summary_table
from evaluation.results import ResultStore
from matquant.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from analysis.load import LoadedResults
    from analysis.typeset import Table
    from matquant.config.study import Study


MEASURED = ("paths.results=studies/demo/results",)
"""The results of `experiment=demo` and two more that come with the source (studies/demo/README.md)."""

SCREEN_DPI = 150


@dataclass(frozen=True)
class ShownTable:
    """A table in a notebook."""

    table: Table

    def _repr_html_(self) -> str:
        return to_html(self.table)

    def __repr__(self) -> str:
        return to_text(self.table)


@dataclass(frozen=True)
class ShownPlot:
    """A figure in a notebook; `save` writes it as svg, pdf or png."""

    plot: Plot
    width: float = TEXT

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        save_figure(self.plot.draw(self.width), buffer, "png", dpi=SCREEN_DPI)
        return buffer.getvalue()

    def save(self, path: Path) -> None:
        save_figure(self.plot.draw(self.width), path, path.suffix.removeprefix("."))

    def __repr__(self) -> str:
        return f"{self.plot.title}. {self.plot.note}".strip()


@dataclass(frozen=True)
class ShownText:
    """Paragraphs in a notebook."""

    lines: Sequence[str]

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {line}" for line in self.lines)

    def __repr__(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class OpenStudy:
    """The results of a study, loaded once."""

    study: Study

    @cached_property
    def loaded(self) -> LoadedResults:
        return load_frame(self.study.cells, self.study.setup, ResultStore(self.study.setup.paths.results))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A row for each read-out: its numbers."""
        return summary(self.loaded)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        return against_reference(self.rows, self.loaded)

    def headlines(self) -> ShownText:
        return ShownText([sentence for sentences in headlines(self.rows) for sentence in sentences])

    def table(self) -> ShownTable:
        """Every read-out of every cell."""
        return ShownTable(summary_table(self.rows, self.loaded.tasks, self.comparisons))

    def paper_table(self, number: int) -> ShownTable:
        """Table `number` of MatQuant, ours beneath theirs."""
        return ShownTable(paper_table(number, self.rows, significant_marks(self.comparisons)))

    @cached_property
    def plots(self) -> dict[str, Plot]:
        return {plot.name: plot for plot in plots(self.study, self.loaded, self.rows)}

    def plot(self, name: str, width: float = TEXT) -> ShownPlot:
        """One of `plots`, as wide as the text or the column of a paper."""
        if name not in self.plots:
            raise UserError(f"this study has no figure {name}; it has {', '.join(self.plots)}")
        return ShownPlot(self.plots[name], width)

    def provenance(self) -> ShownText:
        return ShownText([f"{name}: {value}" for name, value in provenance_rows(self.loaded)])

    def problems(self) -> ShownText:
        """What is wrong with the results, and what is missing."""
        return ShownText([*self.loaded.problems, *gap_texts(self.loaded)] or ["No problem, and nothing is missing."])


def open_study(*overrides: str) -> OpenStudy:
    """A study as `python run.py` is told of it: `experiment=demo`, `paths.results=...`."""
    from matquant.config.study import load_study

    return OpenStudy(load_study(list(overrides)))


def compare(ours: OpenStudy, theirs: OpenStudy, *, first: str, second: str) -> pd.DataFrame:
    """Rows of one study against those of another, by their names (`MatQuant`), on the documents that both have."""
    return pairs_of((ours.rows, ours.loaded), (theirs.rows, theirs.loaded), first=first, second=second)


def check_published() -> ShownText:
    """The papers' averages against their tasks, and what the papers themselves got wrong."""
    frame = published.load()
    known = frame[frame["error"] != ""]
    lines = [f"{len(frame)} published numbers; {len(published.averages(frame))} averages follow from their six tasks."]
    for row in known.to_dict("records"):
        lines.append(f"Table {row['table']}, {row['model']} {row['width']}: {row['value']:g}: {row['error']}")
    return ShownText([*lines, *published.problems()])
