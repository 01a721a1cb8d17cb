"""A report as one self-contained HTML page: its style, script and downloads are inline, nothing is fetched.

The page is drawn by the templates in `PAGES`, which escape all text; only figures come in as HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from analysis.tables.drawing import TABLES
from analysis.tables.markup import draw
from matquant.checkout import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from analysis.page.parts import Page, ShownTable

PAGES = PROJECT / "analysis" / "page" / "templates"
"""The templates of whole pages, with their style and scripts; they find the templates of tables too."""
SCRIPTS = ("tables.js", "figures.js")
LIBRARY = ("floating-ui.core.umd.min.js", "floating-ui.dom.umd.min.js")
"""Floating UI (MIT), 22 kB, which keeps the words about a point on the screen; with its licence in `LIBRARIES`."""
LIBRARIES = PAGES / "floating-ui"


def render(page: Page) -> str:
    """The whole page of a report."""
    scripts = [_licensed(), *map(_asset, SCRIPTS)]
    return _document("report.html.jinja", f"MatQuant report: {page.name}", scripts, page=page)


def plain_page(title: str, tables: Iterable[ShownTable]) -> str:
    """Tables as a page of their own."""
    return _document("tables.html.jinja", title, [_asset("tables.js")], tables=tables)


def _document(template: str, title: str, scripts: list[Markup], **values: Any) -> str:
    style, script = _asset("style.css"), Markup("\n").join(scripts)
    return draw(template, (PAGES, TABLES), title=title, style=style, script=script, **values)


def _asset(name: str) -> Markup:
    return Markup((PAGES / name).read_text(encoding="utf-8"))


def _licensed() -> Markup:
    """The library, with its licence as a comment."""
    licence, *code = ((LIBRARIES / name).read_text(encoding="utf-8") for name in ("LICENSE", *LIBRARY))
    return Markup("\n".join([f"/*! Floating UI\n{licence}*/", *code]))
