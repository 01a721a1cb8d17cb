"""A report as one self-contained HTML page: its style and its few lines of script are inline, nothing is fetched.

Every function returns a piece of HTML and escapes the text it is given; only figures and tables come in as HTML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fefefe; --quiet: #6f6f6f; --rule: #dcdcdc;
  --tint: #f3f5f7; --link: #0a5ea8; --warn: #a33d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e3; --paper: #16181b; --quiet: #9a9a9a; --rule: #3a3d42;
  --tint: #1f2327; --link: #7db8ee; --warn: #f0a070; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.1rem; font-weight: 600; color: var(--quiet); margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
a { color: var(--link); }
p, ul { max-width: 48rem; }
.lead { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: 0 0 .6rem; }
.quiet, .notes, caption, dt { color: var(--quiet); }
.notes { font-size: .875rem; padding-left: 1.2rem; }
.problems li { color: var(--warn); overflow-wrap: anywhere; }
.gaps li, summary { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
.scroll:focus-visible { outline: 2px solid var(--link); }
.figure { padding: .75rem; }
.figure svg { display: block; width: 100%; max-width: 60rem; height: auto; margin: 0 auto; }
.figure .only svg, .figure .narrow svg { max-width: 30rem; }
.figure .narrow { display: none; }
.switch { border: 0; padding: 0; margin: 0 0 .5rem; display: flex; flex-wrap: wrap; gap: .25rem 1.2rem; }
.switch legend { float: left; padding: 0; margin-right: 1rem; color: var(--quiet); }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .6rem; font-weight: 600; }
th, td { padding: .28rem .5rem; text-align: right; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
thead th { background: var(--tint); font-weight: 600; }
thead button { all: unset; cursor: pointer; font: inherit; }
thead button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " ▴"; }
th[aria-sort=descending] button::after { content: " ▾"; }
tbody { border-top: 1px solid var(--rule); }
tbody tr:hover { background: var(--tint); }
td.best { font-weight: 700; }
td.quiet { color: var(--quiet); }
tr.groups th { text-align: center; border-bottom: 1px solid var(--rule); }
td.missing { color: var(--warn); background: var(--tint); }
.results td, .results th { text-align: left; font-size: .82rem; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; font-size: .9rem; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--tint); padding: .75rem; overflow-x: auto; border-radius: 6px; font-size: .875rem; }
@media (max-width: 40rem) { .figure .wide { display: none; } .figure .narrow { display: block; }
  .sortable td:nth-child(2) { white-space: normal; min-width: 8.5rem; }
  .sortable th:first-child, .sortable td:first-child { position: sticky; left: 0; background: var(--paper); } }
@media print { .scroll { overflow: visible; border: 0; } }
"""

SCRIPT = """
for (const input of document.querySelectorAll(".switch input")) {
  input.onchange = () => document.querySelectorAll(".choice").forEach(
    choice => choice.hidden = choice.id !== "choice-" + input.value);
}
for (const table of document.querySelectorAll(".sortable table")) {
  // What is sorted: single rows, or pairs of a paper's row and ours, which go by ours where it is measured.
  const units = table => [...table.tBodies].flatMap(body =>
    table.classList.contains("paired") ? [[...body.rows]] : [...body.rows].map(row => [row]));
  const rank = (unit, i) => {
    const cell = unit.map(row => row.cells[i]).reverse().find(cell => cell.textContent && !cell.matches(".missing"));
    if (!cell) return null;
    const number = parseFloat(cell.textContent.replace(/^int/, ""));
    return isNaN(number) ? cell.textContent : number;
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  [...[...table.tHead.rows].at(-1).cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort";
    head.append(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = units(table).map(unit => [rank(unit, i), unit]);
      const known = rows.filter(row => row[0] !== null), gaps = rows.filter(row => row[0] === null);
      known.sort((a, b) => compare(a[0], b[0]) * (up ? 1 : -1));
      [...table.tBodies].forEach(old => old.remove());
      for (const [, unit] of [...known, ...gaps]) {
        const body = document.createElement("tbody");
        body.append(...unit);
        table.append(body);
      }
    };
  });
}
"""


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
