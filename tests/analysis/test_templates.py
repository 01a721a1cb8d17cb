"""HTML comes from templates: whatever text they are given comes out as that text, and never as markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import jinja2
import pytest
from markupsafe import Markup

from analysis.page.drawing import PAGES, plain_page, render
from analysis.page.parts import Download, Drawn, Page, Picture, Record, ShownTable
from analysis.page.svg import inline_svg
from analysis.page.won import Lead, Summary, Width
from analysis.tables.drawing import TABLES, to_html
from analysis.tables.markup import draw, environment
from analysis.tables.typeset import Entry, Section, Table
from matquant.checkout import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator

EVIL = "<&\"'><img src=x>"
SOURCES = {path.name: path for folder in (PAGES, TABLES) for path in folder.glob("*.jinja")}


class Texts(HTMLParser):
    """The texts and values of attributes that a browser sees, and the elements that they stand in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def evil(place: str) -> str:
    return f"{EVIL} {place}"


def table_of(place: str, *, models: int = 1) -> Table:
    """A table with an evil text in every place; with several models their names are the captions."""
    entries = (Entry(evil(f"{place} label")), Entry(evil(f"{place} best"), best=True, quiet=True), Entry("–"))
    sections = tuple(
        Section(evil(f"{place} model {number}"), evil(f"{place} data type"), (entries, entries))
        for number in range(models)
    )
    notes = (evil(f"{place} note"),)
    groups = (("", 1), (evil(f"{place} group"), 2))
    heads = (evil(f"{place} head"), "", "")
    return Table(heads, sections, notes, groups, num_labels=1, lines=2, caption=evil(f"{place} caption"))


def places_of(place: str, *, models: int = 1) -> Iterator[str]:
    yield from (f"{place} {part}" for part in ("label", "best", "note", "group", "head"))
    yield from (f"{place} model {number}" for number in range(models) if models > 1)
    yield from ([f"{place} caption"] if models == 1 else [])


def evil_page() -> Page:
    svg = Drawn(inline_svg("<svg><path/></svg>", evil("svg label"), {}, "prefix-"), [(1.0, 2.0, 0)])
    files = [Download(evil("file") + ".csv", b"1,2")]
    return Page(
        name=evil("name"),
        claim=evil("claim"),
        asked=[(evil("asked name"), evil("asked value"))],
        summary=Summary(
            [Lead(evil("measure"), evil("unit"), [(evil("winner"), evil("margin"))])],
            [Width(evil("width"), [evil("sentence")])],
            evil("test"),
        ),
        headlines=[[evil("headline"), evil("rival")]],
        measured=evil("measured"),
        pictures=[
            Picture("pareto", evil("pareto"), evil("pareto note"), [svg, svg], [evil("words")], files),
            Picture(evil("picture name"), evil("picture"), evil("picture note"), [svg]),
            Picture("pareto_disk" + EVIL, evil("other pareto"), "", [svg]),
        ],
        tables=[
            ShownTable(evil("table title"), table_of("table", models=2), files),
            ShownTable(evil("paper title"), table_of("paper")),
        ],
        records=[
            Record(
                evil("anchor"), evil("record"), {evil("fact"): evil("value")}, [evil("column")], [[evil("row")]] * 2
            ),
            Record("empty", evil("empty record"), {}, [], []),
        ],
        results=files,
        provenance=[(evil("provenance name"), evil("provenance value"))],
        problems=[evil("problem")],
        gaps=[evil("gap")],
        commands=[evil("command")],
    )


PLACES = (
    *("name", "headline", "rival", "measured", "svg label", "pareto", "pareto note", "picture", "picture note"),
    *("claim", "asked name", "asked value", "measure", "unit", "winner", "margin", "width", "sentence", "test", "file"),
    *(
        "other pareto",
        "table title",
        "paper title",
        "anchor",
        "record",
        "fact",
        "value",
        "column",
        "row",
        "empty record",
    ),
    *("provenance name", "provenance value", "problem", "gap", "command"),
    *places_of("table", models=2),
    *places_of("paper"),
)


def test_a_name_that_looks_like_markup_comes_out_of_every_template_as_text():
    environment.cache_clear()
    drawn = {
        render(evil_page()): PLACES,
        plain_page(evil("title"), [ShownTable("", table_of("plain"))]): ("title", *places_of("plain")),
        to_html(table_of("alone", models=2)): tuple(places_of("alone", models=2)),
    }
    for page, places in drawn.items():
        seen = Texts(page)
        assert "img" not in seen.elements
        assert EVIL not in page
        assert "<img" not in page
        joined = "\0".join(seen.texts)
        assert [place for place in places if evil(place) not in joined] == []
    used = {name for folders in ((PAGES, TABLES), (TABLES,)) for name in loaded(environment(folders))}
    assert used == SOURCES.keys()


def loaded(made: jinja2.Environment) -> set[str]:
    """The names of the templates that have been drawn."""
    assert made.cache is not None
    return {name for _, name in made.cache}


@pytest.mark.parametrize("name", SOURCES)
def test_no_template_turns_escaping_off(name):
    assert re.findall(r"\|\s*safe\b|autoescape", SOURCES[name].read_text(encoding="utf-8")) == []


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="table"):
        draw("table.html.jinja", (TABLES,))


def test_what_is_html_already_goes_in_as_it_is():
    svg = inline_svg('<svg id="a"><use href="#a"/></svg>', 'the "best" one', {}, "first-")
    assert svg == '<svg role="img" aria-label="the &#34;best&#34; one" id="first-a"><use href="#first-a"/></svg>'
    assert isinstance(svg, Markup)
    assert svg in render(page_with(svg))


def test_the_words_of_a_figure_are_data_that_no_word_can_leave():
    page = render(evil_page())
    found = re.findall(r'<script type="application/json" class="words">(.*?)</script>', page)
    assert json.loads(found[0]) == [evil("words")]


def page_with(svg: Markup) -> Page:
    """A page of one picture and nothing else."""
    picture = Picture("codes", "Codes", "", [Drawn(svg)])
    summary = Summary([Lead("", "", [("", "nothing")])])
    return Page("name", "", [], summary, [["nothing"]], "", [picture], [], [], [], [], [], [], [])


def test_what_is_not_there_leaves_no_empty_list_section_or_head_behind():
    page = render(page_with(Markup("<svg></svg>")))
    assert re.findall(r"<ul[^>]*>\s*</ul>|<section[^>]*>\s*<h2>[^<]*</h2>\s*</section>", page) == []
    assert "Quality against size" not in page


def test_tables_name_their_columns_groups_and_rows():
    page = to_html(table_of("a"))
    assert page.count('<th scope="colgroup" colspan="2">') == 1
    assert page.count('<th scope="col">') == 3
    assert page.count('<th scope="row">') == 2
    assert '<td class="missing" title="missing">' in page


def test_a_command_that_draws_nothing_does_not_load_the_template_engine():
    code = "import run, analysis.report.report, analysis.page.drawing, sys; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
