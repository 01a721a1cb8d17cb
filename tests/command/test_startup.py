"""Commands that have nothing to do import nothing heavy, and look at the disk before they look at anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from analysis.report.report import Report
from benchmarks.startup import HEAVY, commands, finished_study
from evaluation.planning import preflight
from matquant.checkout import PROJECT
from matquant.config.study import load_study
from matquant.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

IN_TURN = """
import contextlib, io, json, runpy, sys
heavy, commands = json.loads(sys.argv[1])
for program, *arguments in commands:
    sys.argv, said, status = [program, *arguments], io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
    print(json.dumps([status, [name for name in heavy if name in sys.modules], said.getvalue()]), flush=True)
"""
"""A program that runs all commands in one process, since starting Python takes longest; their imports add up."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[str]]:
    """A study whose results are all there and whose report is drawn."""
    folder = tmp_path_factory.mktemp("finished")
    overrides = finished_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.report.FORMS", ("svg",))  # a report is unchanged in whatever forms it was drawn
        Report(load_study(overrides), overrides).draw()
    return folder, overrides


def test_each_command_imports_the_heavy_libraries_it_has_a_reason_for_and_no_others(finished):
    folder, overrides = finished
    page = folder / "out" / "smoke" / "report.html"
    drawn = page.stat().st_mtime_ns
    # What needs a model is left out: it takes as long as all the others, and torch would hide what others import.
    chosen = [command for command in commands(overrides) if "torch" not in command.needs]
    arguments = json.dumps([HEAVY, [command.arguments for command in chosen]])
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(chosen) == 11
    before: set[str] = set()
    said = {}
    for command, (status, found, text) in zip(chosen, answers, strict=True):
        assert status == (2 if command.name.startswith("refused") else 0), f"{command.name}: {text}"
        assert set(found) == before | set(command.needs), f"{command.name} imports what it has no reason for"
        before, said[command.name] = set(found), text
    assert "nothing to submit" in said["launch, all done"]
    assert f"report: {page}" in said["report, unchanged"]
    assert said["report, unchanged"] in said["second run, nothing to do"]  # after a line for each cell
    assert page.stat().st_mtime_ns == drawn


def test_a_finished_study_is_not_checked_any_further(finished, monkeypatch):
    monkeypatch.setattr(preflight, "check_tasks", lambda _: pytest.fail("looked at the tasks"))
    monkeypatch.setattr(preflight, "refusals", lambda *_: pytest.fail("looked at the models"))
    preflight.check([load_study(finished[1])])


@pytest.mark.parametrize("damage", ["gone", "cut short", "without its documents"])
def test_all_checks_are_made_where_a_single_result_is_missing(damage, tmp_path, monkeypatch):
    study = load_study(finished_study(tmp_path))
    result = sorted(tmp_path.glob("results/*/*/piqa-*.json"))[-1]
    if damage == "gone":
        result.unlink()
    elif damage == "cut short":
        result.write_text(result.read_text()[:100])
    else:
        result.with_suffix(".parquet").unlink()
    checked: list[str] = []
    monkeypatch.setattr(preflight, "check_tasks", lambda _: checked.append("tasks"))
    monkeypatch.setattr(preflight, "refusals", lambda *_: checked.append("models") or {})
    preflight.check([study])
    assert checked == ["tasks", "models"]


def test_a_finished_study_still_needs_folders_it_can_write_to(finished):
    overrides = [text for text in finished[1] if not text.startswith("paths.out")]
    with pytest.raises(UserError, match=r"cannot write to /proc/nowhere .* set paths\.out"):
        preflight.check([load_study([*overrides, "paths.out=/proc/nowhere"])])
