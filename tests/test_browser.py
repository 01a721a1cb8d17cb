"""The report in a real browser: it fetches nothing, complains about nothing, sorts, and fits a phone."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

from analysis.frame.summary import summary
from analysis.report.building import load
from analysis.report.page import plain_page
from analysis.report.report import build_report
from analysis.tables.papers import paper_table
from evaluation.results.store import ResultStore
from evaluation.sources.table import PAPER_TASKS
from tests.made_results import MATQUANT, measure, paper_cells, quantized, study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium installed: the page is NOT opened in a browser")


@pytest.fixture
def made(tmp_path):
    cells = (*paper_cells(), quantized({**MATQUANT, "8->2": 1.0}), quantized(MATQUANT, num_steps=9))
    plans = ("int8", "int6", "int4", "int3", "int2", "pyramid@4")
    made = study(tmp_path, cells, name="table01", plans=plans, tasks=tuple(PAPER_TASKS))
    measure(made)
    store = ResultStore(made.setup.paths.results)
    for cell in made.cells[1:4]:
        layers = {f"model.layers.{block}.mlp.up_proj": {"num_weights": 10} for block in range(4)}
        store.put_codes(cell.id, {"histogram": list(range(1, 257)), "layers": layers})
    return made


@pytest.fixture(autouse=True)
def _only_svg(monkeypatch):
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))


@contextmanager
def opened(path, *, width: int):
    """The page in a window of some width, with everything the browser complained about or asked the network for."""
    from playwright.sync_api import sync_playwright

    noise: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: noise.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: noise.append(f"error: {error}"))
        page.on("request", lambda request: noise.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        yield page, noise
        browser.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_the_report_fetches_nothing_and_fits_the_screen(made, width):
    path = build_report(made).html
    with opened(path, width=width) as (page, noise):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("figure, .figure svg:visible").count() >= 4
        widths = "all => all.map(one => one.getBoundingClientRect().width)"
        boxes = page.locator(".figure svg:visible").evaluate_all(widths)
        assert max(boxes) <= width
        page.locator("summary").first.click()
        assert noise == []


def test_the_axis_of_the_pareto_plot_is_switched(made):
    with opened(build_report(made).html, width=1280) as (page, noise):
        labels = {}
        for name in ("pareto", "pareto_with_grid", "pareto_disk"):
            page.check(f"input[value={name}]")
            shown = page.locator(".choice:visible")
            assert shown.count() == 1
            labels[name] = shown.get_attribute("id")
        assert labels == {name: f"choice-{name}" for name in labels}
        assert noise == []


def test_tables_are_sorted_by_their_numbers_and_gaps_come_last(made):
    store = ResultStore(made.setup.paths.results)
    for path in (store.folder / made.cells[2].id).glob("int2/*.json"):
        path.unlink()
    with opened(build_report(made).html, width=1280) as (page, noise):
        table = page.locator(".sortable table:not(.paired)").first
        table.locator("th", has_text="Bits").click()
        column = "all => all.map(row => row.cells[2].textContent)"
        bits = [float(text) for text in table.locator("tbody tr").evaluate_all(column)]
        assert bits == sorted(bits, reverse=True)
        table.locator("th", has_text="log pplx").click()
        last = table.locator("tbody tr").last
        assert "missing" in last.inner_html()
        assert noise == []


def test_a_papers_row_stays_with_ours_when_sorted(made, tmp_path):
    path = tmp_path / "paper.html"
    rows = summary(load(study(tmp_path / "none", [])))
    path.write_text(plain_page("Table 9", [paper_table(9, rows)]), encoding="utf-8")
    with opened(path, width=1280) as (page, noise):
        page.locator("th", has_text="Task Avg").click()
        lines = page.locator("tbody tr").evaluate_all("all => all.map(row => row.cells[2].textContent)")
        assert lines == ["paper", "ours"] * 15
        averages = page.locator("tbody tr:first-child").evaluate_all("all => all.map(row => row.cells[9].textContent)")
        assert averages[0] == "68.25"
        assert [float(text) for text in averages] == sorted(map(float, averages), reverse=True)
        assert noise == []
