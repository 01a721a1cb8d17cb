"""A report as one self-contained HTML page: its style and its few lines of script are inline, nothing is fetched.

Every function returns a piece of HTML and escapes the text it is given; only figures and tables come in as HTML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from analysis.report.page_style import SCRIPT, STYLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Record:
    """How one cell's numbers were made: its facts, and a row for every result."""

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
    drawn: Sequence[str]


@dataclass(frozen=True)
class Page:
    """What a report says, in the order it says it.  Tables and figures are HTML, all else is text.

    `paper`: caption and table of the paper, where the study is one.  `provenance`: names and values.
    """

    name: str
    headlines: Sequence[Sequence[str]]
    measured: str
    pictures: Sequence[Picture]
    table: str
    paper: tuple[str, str] | None
    records: Sequence[Record]
    provenance: Sequence[tuple[str, str]]
    problems: Sequence[str]
    gaps: Sequence[str]
    commands: Sequence[str]


def render(page: Page) -> str:
    """The whole page."""
    body = "\n".join(
        [
            f"<h1>MatQuant report: {escape(page.name)}</h1>",
            *(_headline(sentences) for sentences in page.headlines),
            f'<p class="quiet">{UNITS_NOTE} {escape(page.measured)}</p>',
            _section("Quality against size", _switch([picture for picture in page.pictures if _is_pareto(picture)])),
            *([_section(page.paper[0], f'<div class="sortable">{_tables(page.paper[1])}</div>')] if page.paper else []),
            _section("Results", f'<div class="sortable">{_tables(page.table)}</div>'),
            *(_section(picture.title, _picture(picture)) for picture in page.pictures if not _is_pareto(picture)),
            _section("Provenance", _facts(page.provenance)),
            _section("How each number was made", "\n".join(_record(record) for record in page.records)),
            _section("Problems", _list("problems", page.problems, "None: every result file was read and used.")),
            _section("Gaps", _list("gaps", page.gaps, "None: everything the read-out asks for has been measured.")),
            _section("Make it again", f"<pre>{escape(chr(10).join(page.commands))}</pre>"),
        ]
    )
    return _document(f"MatQuant report: {page.name}", body)


def plain_page(title: str, tables: Iterable[str]) -> str:
    """Tables, drawn as HTML, as a page of their own."""
    return _document(title, "\n".join(f'<section class="sortable">{_tables(table)}</section>' for table in tables))


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


UNITS_NOTE = "Task Avg in percent: higher is better. Log perplexity in nats per token: lower is better."


def inline_svg(svg: str, label: str, colours: Mapping[str, str], prefix: str) -> str:
    """An SVG file as an element of a page: its colours are those of the page's theme, its ids begin with `prefix`.

    Without that, a figure would look for its clip paths in the first figure of the page, which may be hidden.
    """
    element = svg[svg.index("<svg") :]
    for colour, variable in colours.items():
        element = element.replace(colour, f"var(--{variable})")
    element = re.sub(r'(\bid="|href="#|url\(#)', lambda found: found[1] + prefix, element)
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _is_pareto(picture: Picture) -> bool:
    return picture.name.startswith("pareto")


def _switch(pictures: Sequence[Picture]) -> str:
    """One picture at a time, chosen by buttons: the same plot over another horizontal axis."""
    if len(pictures) < 2:
        return "".join(map(_picture, pictures))
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{escape(picture.name)}"{" checked" if not place else ""}> '
        f"{escape(picture.title)}</label>"
        for place, picture in enumerate(pictures)
    )
    drawn = "".join(
        f'<div class="choice" id="choice-{escape(picture.name)}"{" hidden" if place else ""}>{_picture(picture)}</div>'
        for place, picture in enumerate(pictures)
    )
    return f'<fieldset class="switch"><legend>horizontal axis</legend>{choices}</fieldset>{drawn}'


def _picture(picture: Picture) -> str:
    """The widest form, and on a narrow screen the narrowest."""
    kinds = ["wide", "narrow"] if len(picture.drawn) > 1 else ["only"]
    drawn = "".join(
        f'<div class="{kind}">{svg}</div>'
        for kind, svg in zip(kinds, (picture.drawn[0], picture.drawn[-1]), strict=False)
    )
    note = f'<p class="notes">{escape(picture.note)}</p>' if picture.note else ""
    return _scroll("figure", picture.title, drawn) + note


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts) + "</dl>"


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _headline(sentences: Sequence[str]) -> str:
    first, *more = sentences
    rivals = "".join(f"<li>{escape(sentence)}</li>" for sentence in more)
    return f'<p class="lead">{escape(first)}</p>' + (f"<ul>{rivals}</ul>" if rivals else "")


def _scroll(kind: str, label: str, body: str) -> str:
    """A box that scrolls sideways by itself, so that a narrow screen never scrolls the page."""
    return f'<div class="scroll {kind}" role="region" aria-label="{escape(label)}" tabindex="0">\n{body}\n</div>'


def _tables(table: str) -> str:
    """The tables in scrolling boxes, their notes below."""
    body, mark, notes = table.partition('<ul class="notes">')
    return _scroll("", "Table of results", body) + mark + notes


def _record(record: Record) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in record.heads)
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in record.rows)
    table = f'<table class="results"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    results = _scroll("", f"Results of {record.title}", table) if record.rows else '<p class="quiet">no results yet</p>'
    summary = f"<summary>{escape(record.title)}</summary>"
    return f'<details id="{escape(record.anchor)}">{summary}{_facts(record.facts.items())}{results}</details>'


def _list(kind: str, items: Iterable[str], none: str) -> str:
    drawn = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="{kind}">{drawn}</ul>' if drawn else f'<p class="quiet">{escape(none)}</p>'
