"""A report is drawn again if anything that it shows has changed, and only then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from analysis.report import unchanged
from analysis.report.files import ReportPaths, write_text
from analysis.report.report import Report
from matquant.runs.folder import RunDir
from tests.made_results import MATQUANT, measure, quantized, study, unquantized
from tests.own_tasks import write_own_tasks

if TYPE_CHECKING:
    from pathlib import Path

    from matquant.config.study import Study


@pytest.fixture
def made(tmp_path) -> Study:
    made = study(tmp_path, [unquantized(), quantized(MATQUANT)])
    measure(made)
    return made


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """The names of what has been drawn, in order; drawing itself is tested elsewhere, and takes a second."""
    pages: list[str] = []

    def build(_study: Study, _numbers: object, paths: ReportPaths, **_: object) -> list[Path]:
        pages.append("report")
        return [write_text(path, f"{len(pages)}") for path in (paths.csv, paths.html)]

    def notebook(_overrides: object, path: Path) -> None:
        pages.append("notebook")
        write_text(path, "cells")

    monkeypatch.setattr("analysis.report.building.numbers_of", lambda _: None)
    monkeypatch.setattr("analysis.report.building.text_of", lambda _: "a table")
    monkeypatch.setattr("analysis.report.building.build", build)
    monkeypatch.setattr("analysis.report.notebook.write_report_notebook", notebook)
    return pages


def test_nothing_is_drawn_twice_and_the_table_stays_the_same(made, monkeypatch):
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))
    first = Report(made)
    folder = first.draw().folder
    text, files = first.text(), {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "MatQuant (OmniQuant)" in text
    monkeypatch.setattr("analysis.report.building.numbers_of", lambda _: pytest.fail("results were read"))
    second = Report(made)
    second.draw()
    assert second.text() == text
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files


def one(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


CHANGES: dict[str, Callable[[Study], object]] = {
    "a result is gone": lambda made: one(made.setup.paths.results, "*/int2/boolq-*.json").unlink(),
    "a result is there under another protocol": lambda made: measure(made, limit=50),
    "a result is another": lambda made: measure(made, accuracy=0.6),
    "documents are gone": lambda made: one(made.setup.paths.results, "*/int2/boolq-*.parquet").unlink(),
    "a result is damaged": lambda made: one(made.setup.paths.results, "*/int2/boolq-*.json").write_text("{"),
    "codes are recorded": lambda made: (made.setup.paths.results / made.cells[1].id / "codes.json").write_text("{}"),
    "a plan is found": lambda made: (made.setup.paths.results / made.cells[1].id / "e@3.plan.json").write_text("{}"),
    "a step is logged": lambda made: RunDir(made.setup.paths.runs, made.cells[1].id).append_log({"step": 1}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_it_is_drawn_again_when_what_it_reads_has_changed(made, drawn, change):
    Report(made).draw()
    change(made)
    Report(made).draw()
    assert drawn == ["report"] * 2
    Report(made).draw()
    assert drawn == ["report"] * 2


def test_what_it_does_not_read_and_when_files_were_written_do_not_matter(made, drawn, tmp_path):
    Report(made).draw()
    kept = {path: path.read_bytes() for path in made.setup.paths.results.rglob("*.json")}
    for path, content in kept.items():
        path.write_bytes(content)
    (made.setup.paths.results / "of another cell").mkdir()
    (made.setup.paths.results / "of another cell" / "codes.json").write_text("{}")
    Report(made).draw()
    assert drawn == ["report"]


def test_it_is_drawn_again_when_something_else_is_asked_for(made, drawn):
    readout = made.setup.readout.model_copy(update={"limit": 50})
    asked = [
        (made, None),
        (made, ["paths.out=elsewhere"]),
        (replace(made, cells=made.cells[:1]), None),
        (replace(made, setup=made.setup.model_copy(update={"readout": readout})), None),
    ]
    for number, (wanted, overrides) in enumerate(asked, start=1):
        Report(wanted, overrides).draw()
        assert drawn == ["report"] * number


def test_it_is_drawn_again_when_a_task_of_the_users_own_has_changed(made, drawn, tmp_path):
    folder = write_own_tasks(tmp_path / "tasks")
    asked = made.setup.readout.model_copy(update={"include_path": str(folder), "tasks": ("colors",)})
    study = replace(made, setup=made.setup.model_copy(update={"readout": asked}))
    Report(study).draw()
    Report(study).draw()
    assert drawn == ["report"]
    (folder / "choices_test.jsonl").write_text((folder / "choices_dev.jsonl").read_text())
    Report(study).draw()
    assert drawn == ["report"] * 2


def test_it_is_drawn_again_by_other_code_and_other_libraries(made, drawn, monkeypatch, tmp_path):
    Report(made).draw()
    monkeypatch.setattr(unchanged, "_version", lambda library: f"another {library}")
    Report(made).draw()
    assert drawn == ["report"] * 2
    for room in ("analysis/published", "analysis/report", "evaluation/results"):
        (tmp_path / room).mkdir(parents=True)
    monkeypatch.setattr(unchanged, "PROJECT", tmp_path)
    Report(made).draw()
    files = ("report/building.py", "published/table01.csv", "page.html.jinja", "style.css", "script.js")
    for name in (*(f"analysis/{name}" for name in files), "evaluation/results/store.py"):
        (tmp_path / name).write_text("code")
        Report(made).draw()
    assert drawn == ["report"] * 9


@pytest.mark.parametrize("name", ["table.csv", "report.html", ".drawn.json"])
def test_it_is_drawn_again_when_a_file_of_it_is_gone_or_another(made, drawn, name):
    for spoil in (lambda path: path.unlink(), lambda path: path.write_text("cut sho")):
        folder = Report(made).draw().folder
        spoil(folder / name)
        Report(made).draw()
    assert drawn == ["report"] * 3


def test_a_record_that_is_none_is_not_believed(made, drawn):
    paths = Report(made).draw()
    whole = json.loads(paths.record.read_text())
    foreign = [{"text": None}, {"files": {}}, {"files": [1]}, {"files": {"report.html": None}}, {"sources": "another"}]
    for number, record in enumerate(["", "[]", "{}", *(json.dumps({**whole, **facts}) for facts in foreign)], start=2):
        paths.record.write_text(record)
        assert Report(made).draw().html.read_text() == str(number)
        assert json.loads(paths.record.read_text()).keys() == whole.keys()
    assert drawn == ["report"] * 9


def test_a_report_of_another_study_in_its_place_is_not_taken_for_it(made, drawn, tmp_path):
    Report(made).draw()
    other = study(tmp_path / "other", [unquantized()], name="made")
    shutil.copytree(made.setup.paths.out, other.setup.paths.out)
    Report(other).draw()
    assert drawn == ["report"] * 2


def test_a_notebook_is_made_for_who_asks_and_goes_out_of_date_with_the_report(made, drawn):
    Report(made).draw()
    Report(made).draw(notebook=True)
    assert drawn == ["report", "notebook"]
    Report(made).draw()
    paths = Report(made).draw(notebook=True)
    assert drawn == ["report", "notebook"]
    paths.notebook.unlink()
    Report(made).draw()  # whoever wants no notebook misses none
    assert drawn == ["report", "notebook"]
    Report(made).draw(notebook=True)
    assert drawn == ["report", "notebook", "notebook"]
    measure(made, accuracy=0.6)
    Report(made).draw()
    Report(made).draw(notebook=True)
    assert drawn == ["report", "notebook", "notebook", "report", "notebook"]
