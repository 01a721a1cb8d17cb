"""Functions for notebooks: each returns something that a cell displays, and `print` shows as text.

from analysis.notebooks import show

study = show.open_study("experiment=demo")
study.table()
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis import published
from analysis.figures.gallery import Plot, plots
from analysis.figures.style import SCREEN_DPI, TEXT, save_figure
from analysis.frame.code_counts import slicing_steps
from analysis.frame.opened import OpenStudy
from analysis.frame.otherwise import measured_otherwise
from analysis.frame.pairs import difference_of, pairs_of
from analysis.page.contents import gap_texts, headlines, provenance_rows
from analysis.tables.drawing import to_html, to_text
from analysis.tables.papers import paper_table
from analysis.tables.summary_table import significant_marks, summary_table, with_reference_notes
from matquant.checkout import from_anywhere
from matquant.errors import UserError
from matquant.notation import Slice

if TYPE_CHECKING:
    from analysis.tables.typeset import Table


MEASURED = (f"paths.results={from_anywhere(Path('studies/demo/results'))}",)
"""The results of `experiment=demo` and two more that come with the source (studies/demo/README.md)."""


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

    def save(self, path: Path | str) -> None:
        save_figure(self.plot.draw(self.width), Path(path), Path(path).suffix.removeprefix("."))

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
class ShownStudy:
    """A study whose results are shown."""

    opened: OpenStudy

    def headlines(self) -> ShownText:
        return ShownText([sentence for sentences in headlines(self.opened.rows) for sentence in sentences])

    def table(self) -> ShownTable:
        """Every read-out of every cell."""
        opened = self.opened
        loaded = opened.loaded
        return ShownTable(
            summary_table(opened.rows, loaded.tasks, opened.comparisons, loaded.metrics, loaded.directions)
        )

    def paper_table(self, number: int) -> ShownTable:
        """Table `number` of MatQuant, ours beneath theirs."""
        rows, comparisons = self.opened.rows, self.opened.comparisons
        noted, marks = with_reference_notes(rows, comparisons), significant_marks(comparisons)
        return ShownTable(paper_table(number, noted, marks, otherwise=measured_otherwise(self.opened.loaded)))

    def only(self, *names: str) -> ShownStudy:
        """The rows whose names begin with one of these: `MatQuant`, `Baseline (OmniQuant)`."""
        return ShownStudy(self.opened.only(*names))

    def difference(self, first: tuple[str, str], second: tuple[str, str]) -> pd.DataFrame:
        """Two read-outs, each its name and its plan, on the documents that both were measured on."""
        return difference_of(self.opened, first, second)

    @cached_property
    def plots(self) -> dict[str, Plot]:
        opened = self.opened
        return {plot.name: plot for plot in plots(opened.study, opened.loaded, opened.rows)}

    def plot(self, name: str, width: float = TEXT) -> ShownPlot:
        """One of `plots`, as wide as the text or the column of a paper."""
        if name not in self.plots:
            raise UserError(f"this study has no figure {name}; it has {', '.join(self.plots)}")
        return ShownPlot(self.plots[name], width)

    def provenance(self) -> ShownText:
        return ShownText([f"{name}: {value}" for name, value in provenance_rows(self.opened.loaded)])

    def problems(self) -> ShownText:
        """The problems of the results, those of other protocols, and the missing ones."""
        loaded = self.opened.loaded
        return ShownText(
            [*loaded.problems, *loaded.others, *gap_texts(loaded)] or ["No problem, and nothing is missing."]
        )


def open_study(*overrides: str) -> ShownStudy:
    """A study, chosen by overrides of `matquant run`: `experiment=demo`, `bits=int8,int4`, `paths.results=...`."""
    from matquant.config.sweep import load_joint

    joints, _ = load_joint(overrides)
    if len(joints) > 1:
        names = ", ".join(study.name for study, _ in joints)
        raise UserError(f"these overrides make {len(joints)} studies, {names}; open them one by one")
    return ShownStudy(OpenStudy(joints[0].study))


def compare(ours: ShownStudy, theirs: ShownStudy, *, first: str, second: str) -> pd.DataFrame:
    """Rows of one study against those of another, by their names (`MatQuant`), on the documents that both have."""
    return pairs_of(ours.opened, theirs.opened, first=first, second=second)


def slicing(codes: Sequence[int], to: str) -> pd.DataFrame:
    """Eq. 6 for int8 codes, step by step: `slicing([37, 200], to="int2")`."""
    return slicing_steps(codes, Slice.parse(to))


def check_published() -> ShownText:
    """The papers' averages against their tasks, and the known errors of the papers."""
    frame = published.load()
    known = frame[frame["error"] != ""]
    lines = [f"{len(frame)} published numbers; {len(published.averages(frame))} averages follow from their six tasks."]
    for row in known.to_dict("records"):
        lines.append(f"Table {row['table']}, {row['model']} {row['width']}: {row['value']:g}: {row['error']}")
    return ShownText([*lines, *published.problems()])
