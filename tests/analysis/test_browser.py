"""The report in a real browser: it fetches nothing, complains about nothing, and everything on it can be clicked.

Chromium is that of the machine (`.ci/tools` installs it); playwright drives it and downloads none.
"""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from analysis.frame.summary import summary
from analysis.page.drawing import plain_page
from analysis.page.parts import ShownTable
from analysis.report.building import load
from analysis.report.report import build_report
from analysis.tables.papers import paper_table
from evaluation.results.store import ResultStore
from evaluation.sources.table import PAPER_TASKS
from tests.made_results import MATQUANT, measure, paper_cells, quantized, study, unquantized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matquant.config.study import Study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium installed: the page is NOT opened in a browser")
FITS = "document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module", autouse=True)
def _only_svg() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.report.FORMS", ("svg",))
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report with every kind of figure but training curves, one result of which is missing."""
    cells = (*paper_cells(), quantized({**MATQUANT, "8->2": 1.0}), quantized(MATQUANT, num_steps=9))
    plans = ("int8", "int6", "int4", "int3", "int2", "pyramid@4")
    made = study(tmp_path_factory.mktemp("made"), cells, name="table01", plans=plans, tasks=tuple(PAPER_TASKS))
    store = measure(made)
    for cell in made.cells[1:4]:
        layers = {f"model.layers.{block}.mlp.up_proj": {"num_weights": 10} for block in range(4)}
        store.put_codes(cell.id, {"histogram": list(range(1, 257)), "layers": layers})
    for path in (store.folder / made.cells[2].id).glob("int2/log_pplx*.json"):
        path.unlink()
    return build_report(made).html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser) -> Callable[..., Any]:
    """Opens a page in a window; at the end, nothing was fetched and the browser complained about nothing."""

    @contextmanager
    def open_at(path: Path, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
        noise: list[str] = []
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("request", lambda request: noise.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        yield page
        page.close()
        assert [one for one in noise if not one.startswith("data:text/csv")] == []

    return open_at


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (480, "dark"), (1280, "light")])
def test_a_page_fits_the_screen_and_its_tables_scroll_in_their_boxes(report, opened, width, scheme):
    with opened(report, width, scheme) as page:
        assert page.evaluate(FITS)
        widths = page.locator(".figure svg:visible").evaluate_all("all => all.map(one => one.clientWidth)")
        assert len(widths) >= 4
        assert max(widths) <= width
        for details in page.locator("summary").all():
            details.click()
        assert page.evaluate(FITS)
        box = page.locator(".scroll").first
        assert box.evaluate("one => one.scrollWidth > one.clientWidth || innerWidth > 1000")
        ink, paper = (page.locator("body").evaluate(f"one => getComputedStyle(one).{name}") for name in COLOURS)
        assert (brightness(ink) < brightness(paper)) == (scheme == "light")


COLOURS = ("color", "backgroundColor")


def brightness(colour: str) -> int:
    """The sum of the channels of `rgb(1, 2, 3)`."""
    return sum(int(channel) for channel in colour.removeprefix("rgb(").rstrip(")").split(","))


def test_the_question_and_the_answer_come_first(report, opened):
    with opened(report) as page:
        heads = page.locator("h2").all_inner_texts()
        assert heads[:3] == ["Asked", "Found", "Quality against size"]
        assert "Nothing can be told at" in page.locator(".lead").first.inner_text()
        page.locator(".widths summary").click()
        assert page.locator(".widths dd:visible").count() == 5


def test_the_axis_of_the_pareto_plot_is_switched(report, opened):
    with opened(report) as page:
        for name in ("pareto", "pareto_with_grid", "pareto_disk"):
            page.check(f"input[value={name}]")
            assert page.locator(".choice:visible").evaluate_all("all => all.map(one => one.id)") == [f"choice-{name}"]


def test_tables_are_sorted_by_their_numbers_and_gaps_come_last(report, opened):
    with opened(report) as page:
        table = page.locator(".sortable table:not(.paired)").first
        column = "all => all.map(row => row.cells[2].textContent)"
        before = table.locator("tbody tr").evaluate_all(column)
        head = table.locator("th button", has_text="Bits").first
        head.click()
        bits = [float(text) for text in table.locator("tbody tr").evaluate_all(column)]
        assert bits == sorted(bits, reverse=True)
        head.click()
        head.click()
        assert table.locator("tbody tr").evaluate_all(column) == before
        table.locator("th button", has_text="log pplx").click()
        assert "missing" in table.locator("tbody tr").last.inner_html()


def test_a_papers_row_stays_with_ours_when_sorted_and_filtered(opened, tmp_path):
    path = tmp_path / "paper.html"
    rows = summary(load(study(tmp_path / "none", [])))
    path.write_text(plain_page("Table 9", [ShownTable("Table 9", paper_table(9, rows))]), encoding="utf-8")
    with opened(path) as page:
        page.locator("th", has_text="Task Avg").click()
        lines = page.locator("tbody tr").evaluate_all("all => all.map(row => row.cells[2].textContent)")
        assert lines == ["paper", "ours"] * 15
        averages = page.locator("tbody tr:first-child").evaluate_all("all => all.map(row => row.cells[9].textContent)")
        assert averages[0] == "68.25"
        assert [float(text) for text in averages] == sorted(map(float, averages), reverse=True)
        page.locator("input[type=search]").fill("sliced")
        shown = page.locator("tbody tr:visible").evaluate_all("all => all.map(row => row.cells[2].textContent)")
        assert shown == ["paper", "ours"] * (len(shown) // 2) != []


def test_rows_are_filtered_by_words_and_by_the_first_column(report, opened):
    with opened(report) as page:
        section = page.locator("section.sortable", has=page.locator("h2", has_text="Results"))
        rows, count = section.locator("tbody tr:visible"), section.locator("output")
        total = rows.count()
        assert count.inner_text() == f"{total} rows"
        section.locator("input").fill("matquant -[8")
        names = rows.evaluate_all("all => all.map(row => row.cells[1].textContent)")
        assert names
        assert all("MatQuant" in name and "[8" not in name for name in names)
        assert count.inner_text() == f"{len(names)} of {total} rows"
        section.locator("select").select_option("int2")
        assert set(rows.evaluate_all("all => all.map(row => row.cells[0].textContent)")) == {"int2"}
        section.locator("th button", has_text="Task Avg").click()
        assert set(rows.evaluate_all("all => all.map(row => row.cells[0].textContent)")) == {"int2"}
        section.locator("input").fill("no such row")
        assert (rows.count(), count.inner_text()) == (0, f"0 of {total} rows")
        section.locator("select").select_option("")
        section.locator("input").fill("")
        assert rows.count() == total


PLACE = """drawn => {
  const [x, y] = drawn.dataset.points.split(" ").map(Number);
  const svg = drawn.querySelector("svg");
  svg.scrollIntoView({ block: "center" });
  const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
  return [point.x, point.y];
}"""


@pytest.mark.parametrize(("width", "kind"), [(1280, "wide"), (480, "narrow")])
def test_a_point_is_told_where_it_is_pointed_at(report, opened, width, kind):
    with opened(report, width) as page:
        drawn = page.locator(f".{kind}[data-points]:visible").first  # waits until it is there
        x, y = drawn.evaluate(PLACE)
        page.mouse.move(x + 3, y + 3)
        tip = page.locator(".tip")
        tip.wait_for(state="visible")
        said = tip.inner_text()
        assert "at int8" in said
        assert "Task Avg (%): 5" in said
        assert "8 effective bits per quantized weight" in said
        page.wait_for_function("document.querySelector('.tip').style.left")
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.mouse.move(1, 1)
        tip.wait_for(state="hidden")


def test_points_are_reached_by_arrow_keys_and_left_by_escape(report, opened):
    with opened(report) as page:
        page.locator("[data-points] svg:visible").first.focus()
        page.keyboard.press("ArrowRight")
        first = page.locator(".tip").inner_text()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        assert page.locator(".tip").inner_text() != first
        assert page.locator(".ring:visible").count() == 1
        page.keyboard.press("Escape")
        assert page.locator(".tip").is_hidden()


def test_downloads_are_the_files_beside_the_page(report, opened):
    with opened(report) as page:
        links = page.locator("a[download]:visible")
        names = links.evaluate_all("all => all.map(one => one.download)")
        assert {"table.csv", "table.tex", "paper.csv", "paper.tex", "pareto.csv", "pareto.tex", "codes.csv"} < set(
            names
        )
        for name in ("table.csv", "pareto.tex", "results.csv"):
            with page.expect_download() as waiting:
                page.locator(f"a[download='{name}']:visible").click()
            assert waiting.value.suggested_filename == name
            assert Path(waiting.value.path()).read_bytes() == report.with_name(name).read_bytes()


EVIL = "<b>&\"'ø–λ $_$"


def pages(folder: Path) -> dict[str, Study]:
    """Studies at the ends of what there is."""
    many = [quantized({**MATQUANT, "int2": 1 + number}) for number in range(12)]
    found = {
        "nothing": study(folder / "nothing", paper_cells()),
        "no cells": study(folder / "no cells", []),
        "one row": study(folder / "one row", [quantized({"int2": 1.0}, parent_bits=2)], plans=("int2",)),
        "many rows": study(folder / "many", [unquantized(), *many], plans=("int8", "int6", "int4", "int3", "int2")),
        "gaps": study(folder / "gaps", paper_cells()),
        EVIL: study(folder / "evil", [unquantized(name=EVIL), quantized(MATQUANT, name=EVIL)], name=f"a {EVIL}"),
    }
    for name, made in found.items():
        if not name.startswith("no"):
            measure(made)
    results = ResultStore(found["gaps"].setup.paths.results).folder / found["gaps"].cells[3].id
    for path in [*results.glob("int4/*"), *results.glob("int2/log_pplx*")]:
        path.unlink()
    return found


def test_pages_at_the_ends_of_what_there_is_are_whole(opened, tmp_path):
    for name, made in pages(tmp_path).items():
        with opened(build_report(made).html, 480) as page:
            assert page.evaluate(FITS), name
            text = page.locator("main").inner_text()
            assert re.search(r"\bnan\b", text, re.IGNORECASE) is None, name
            assert name != EVIL or EVIL in text
            assert page.locator("main b", has_text="&").count() == 0
            assert ("Nothing has been measured yet." in text) == name.startswith("no")
            rows = page.locator("section.sortable tbody tr").count()
            assert rows >= 60 or name != "many rows"
