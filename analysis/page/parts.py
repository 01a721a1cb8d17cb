"""The parts of a page as values, before they are drawn: pictures, tables, records, downloads."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from analysis.page.won import Summary
    from analysis.tables.typeset import Table

MEDIA = {"csv": "text/csv", "tex": "application/x-tex", "pdf": "application/pdf"}
LABELS = {"csv": "CSV", "tex": "LaTeX", "pdf": "PDF"}


@dataclass(frozen=True)
class Download:
    """A file that travels inside of the page, so that a page that was sent to somebody still has it."""

    name: str
    content: bytes

    @property
    def form(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def label(self) -> str:
        return LABELS[self.form]

    @property
    def href(self) -> str:
        return f"data:{MEDIA[self.form]};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class ShownTable:
    """A table and its downloads, under a title."""

    title: str
    table: Table
    downloads: Sequence[Download] = ()


@dataclass(frozen=True)
class Record:
    """The record of one cell's numbers: its facts, and a row for every result."""

    anchor: str
    title: str
    facts: Mapping[str, str]
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Drawn:
    """A figure at one width as an SVG element; `points`: x, y and the number of its words for each point."""

    svg: Markup
    points: Sequence[tuple[float, float, int]] = ()

    @property
    def places(self) -> str:
        return " ".join(f"{x:.1f} {y:.1f} {number}" for x, y, number in self.points)


@dataclass(frozen=True)
class Picture:
    """A figure, widest first: where a screen is too narrow for the first, the last is shown.

    `words`: what is said about its points.
    """

    name: str
    title: str
    note: str
    drawn: Sequence[Drawn]
    words: Sequence[str] = ()
    downloads: Sequence[Download] = ()

    @property
    def is_pareto(self) -> bool:
        return self.name.startswith("pareto")


@dataclass(frozen=True)
class Page:
    """The content of a report, in the order of its page.

    `claim` and `asked`: the question.  `summary`: the answer.  `headlines`: the numbers of the narrowest width.
    `provenance`: names and values.
    """

    name: str
    claim: str
    asked: Sequence[tuple[str, str]]
    summary: Summary
    headlines: Sequence[Sequence[str]]
    measured: str
    pictures: Sequence[Picture]
    tables: Sequence[ShownTable]
    records: Sequence[Record]
    results: Sequence[Download]
    """Every result with its protocol and provenance, as a file."""
    provenance: Sequence[tuple[str, str]]
    problems: Sequence[str]
    gaps: Sequence[str]
    commands: Sequence[str]
