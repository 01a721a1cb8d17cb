"""Notebooks run headless on the results that come with the source, and what they show is what is committed."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest

from analysis.notebooks import NOTEBOOKS, show
from analysis.report.notebook import PARAMETERS, TEMPLATE, execute, read, with_parameters
from analysis.report.report import main
from matquant.checkout import PROJECT
from matquant.errors import UserError


def outputs(notebook) -> list[dict[str, str]]:
    """The outputs of every cell, pictures by their kind alone: their bytes depend on fonts and versions."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        {kind: "" if kind == "image/png" else text for kind, text in output["data"].items()}
        if "data" in output
        else dict(output)
        for output in shown
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path):
    committed = read(path)
    executed = execute(read(path))
    assert outputs(executed) == outputs(committed)
    kinds = {kind for output in outputs(executed) for kind in output}
    assert kinds & {"text/html", "image/png"}
    assert "ename" not in kinds


@pytest.mark.parametrize("path", [*NOTEBOOKS, TEMPLATE], ids=lambda path: path.stem)
def test_every_cell_calls_a_function_and_shows_it(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 5
            assert "def " not in cell.source


def test_committed_pictures_are_whole():
    pictures = [
        output["data"]["image/png"]
        for path in NOTEBOOKS
        for cell in read(path).cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 8
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_the_report_executes_a_notebook_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))
    overrides = ["experiment=demo", f"paths.results={PROJECT / 'studies/demo/results'}", f"paths.out={tmp_path}"]
    main(overrides)
    notebook = read(tmp_path / "demo" / "report.ipynb")
    (parameters,) = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]
    assert repr(overrides) in parameters.source
    assert sum("image/png" in output for output in outputs(notebook)) >= 3
    assert any("MatQuant (OmniQuant)" in output.get("text/html", "") for output in outputs(notebook))


def test_parameters_are_written_as_python(tmp_path):
    notebook = with_parameters(read(TEMPLATE), ["paths.out=it's here"])
    assert any("it's here" in cell.source for cell in notebook.cells)


def test_an_error_in_a_cell_is_not_passed_over():
    notebook = read(TEMPLATE)
    notebook.cells = [notebook.cells[2]]
    notebook.cells[0].source = "raise ValueError('seen')"
    with pytest.raises(Exception, match="seen"):
        execute(notebook)


def test_a_figure_that_a_study_does_not_have_is_named_with_those_it_has():
    with pytest.raises(UserError, match=r"no figure mixnmatch; it has pareto, .*widths"):
        show.open_study("experiment=demo", *show.MEASURED).plot("mixnmatch")


def test_nothing_that_is_shown_imports_a_model_library():
    code = (
        "import sys; from analysis.notebooks import show; "
        "from analysis.report import all_tables, report, wandb_report; "
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'wandb') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
