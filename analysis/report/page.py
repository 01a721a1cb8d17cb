"""A report as one self-contained HTML page: its style and its few lines of script are inline, nothing is fetched.

The page is drawn by the templates in `PAGES`, which escape all text; only figures come in as HTML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from analysis.tables.drawing import TABLES
from analysis.tables.markup import draw
from matquant.checkout import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from analysis.tables.typeset import Table

PAGES = PROJECT / "analysis" / "report" / "templates"
"""The templates of whole pages, with their style and script; they find the templates of tables too."""


@dataclass(frozen=True)
class Record:
    """The record of one cell's numbers: its facts, and a row for every result."""

    anchor: str
    title: str
    facts: Mapping[str, str]
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure as SVG elements, widest first: where a screen is too narrow for the first, the last is shown."""

    name: str
    title: str
    note: str
    drawn: Sequence[Markup]

    @property
    def is_pareto(self) -> bool:
        return self.name.startswith("pareto")


@dataclass(frozen=True)
class Page:
    """The content of a report, in the order of its page.

    `paper`: caption and table of the paper, if the study is one.  `provenance`: names and values.
    """

    name: str
    headlines: Sequence[Sequence[str]]
    measured: str
    pictures: Sequence[Picture]
    table: Table
    paper: tuple[str, Table] | None
    records: Sequence[Record]
    provenance: Sequence[tuple[str, str]]
    problems: Sequence[str]
    gaps: Sequence[str]
    commands: Sequence[str]
    equal: Table | None = None
    """Rows at equal stored bits, if the study has somebody else's model."""


def render(page: Page) -> str:
    """The whole page."""
    return _document("report.html.jinja", f"MatQuant report: {page.name}", page=page)


def plain_page(title: str, tables: Iterable[Table]) -> str:
    """Tables as a page of their own."""
    return _document("tables.html.jinja", title, tables=tables)


def _document(template: str, title: str, **values: Any) -> str:
    style, script = _asset("style.css"), _asset("script.js")
    return draw(template, (PAGES, TABLES), title=title, style=style, script=script, **values)


def _asset(name: str) -> Markup:
    return Markup((PAGES / name).read_text(encoding="utf-8"))


def inline_svg(svg: str, label: str, colours: Mapping[str, str], prefix: str) -> Markup:
    """An SVG file as an element of a page: its colours are those of the page's theme, its ids begin with `prefix`.

    Without that, a figure would look for its clip paths in the first figure of the page, which may be hidden.
    """
    element = svg[svg.index("<svg") :].removeprefix("<svg")
    for colour, variable in colours.items():
        element = element.replace(colour, f"var(--{variable})")
    element = re.sub(r'(\bid="|href="#|url\(#)', lambda found: found[1] + prefix, element)
    return Markup('<svg role="img" aria-label="{}"{}').format(label, Markup(element))
