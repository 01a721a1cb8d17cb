"""Typing in another folder than the clone's, and logs in files: each says what it has to, and no more."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from analysis.report.compare import measured
from evaluation.results.store import ResultStore
from matquant.checkout import left_in_the_clone
from matquant.command import main
from matquant.command.terminal import log_to_stderr
from matquant.errors import UserError
from matquant.runs.bars import bar


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone with runs and results, and the working directory beside it."""
    folder = tmp_path / "clone"
    for name in ("runs", "results"):
        (folder / name / "a_cell").mkdir(parents=True)
    for module in ("matquant.checkout", "analysis.report.compare"):
        monkeypatch.setattr(f"{module}.PROJECT", folder)
    monkeypatch.setattr("matquant.checkout.STUDIES", folder / "studies")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def test_another_folder_is_told_where_runs_are_looked_for_and_how_to_read_those_of_the_clone(clone):
    said = left_in_the_clone(runs=Path("runs"), results=Path("results"))
    assert said is not None
    assert said.startswith(f"looking for runs and results in {Path.cwd()}; ")
    assert f"paths.runs={clone / 'runs'} paths.results={clone / 'results'}" in said


def test_nothing_is_said_where_there_is_nothing_to_say(clone, monkeypatch):
    assert left_in_the_clone(runs=clone / "runs", results=clone / "results") is None
    Path("results").mkdir()
    assert left_in_the_clone(runs=Path("runs"), results=Path("results")) is not None
    (Path("results") / "a_cell").mkdir()
    assert left_in_the_clone(runs=Path("runs"), results=Path("results")) is None
    monkeypatch.chdir(clone)
    assert left_in_the_clone(runs=Path("runs"), results=Path("results")) is None


@pytest.mark.parametrize(
    "typed", [["status", "experiment=demo"], ["tables", "1"], ["search", "evolution@3", "base=gptq"]], ids=" ".join
)
def test_every_command_that_reads_says_it_first(typed, clone, monkeypatch, caplog):
    monkeypatch.setattr("matquant.command.dispatch.log_to_stderr", lambda: None)
    monkeypatch.setattr("matquant.command.dispatch.import_module", lambda _: pytest.fail("called"))
    monkeypatch.setattr("matquant.command.dispatch.is_clone", lambda: True)
    with caplog.at_level(logging.INFO, "matquant"), pytest.raises(pytest.fail.Exception):
        main(typed)
    assert any(f"paths.results={clone / 'results'}" in message for message in caplog.messages)


def test_a_comparison_names_the_results_of_the_clone(clone):
    with pytest.raises(UserError, match=f"in {Path.cwd() / 'results'}; .*--results {clone / 'results'}"):
        measured("cell:int2", ResultStore(Path("results")))


# --- logs ------------------------------------------------------------------------------------------------------------


class Terminal:
    """A stream that says whether somebody watches."""

    def __init__(self, watched: bool) -> None:
        self.text, self.watched = "", watched

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return self.watched


@pytest.mark.parametrize("watched", [True, False], ids=["terminal", "file"])
def test_bars_of_any_library_are_drawn_on_a_terminal_and_never_into_a_file(watched, monkeypatch):
    from tqdm import tqdm

    stream = Terminal(watched)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    log_to_stderr()
    log_to_stderr()  # as a job of Hydra's launcher does
    for _ in tqdm(range(3), desc="of another library", mininterval=0):
        pass
    sys.stderr.write("a warning\n")
    assert ("of another library" in stream.text) == watched
    assert ("\r" in stream.text) == watched
    assert stream.text.endswith("a warning\n")
    if not watched:
        assert stream.text == "a warning\n"


def test_a_long_task_of_ours_leaves_lines_in_a_file(monkeypatch):
    stream = Terminal(watched=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr("matquant.runs.bars.SECONDS", 0.0)
    monkeypatch.setattr("matquant.runs.bars.DELAY", 0.0)
    log_to_stderr()
    with bar("train cell", total=2, unit="blocks") as shown:
        shown.set_postfix_str("loss 0.5", refresh=False)
        shown.update()
        shown.update()
    assert shown.n == 2
    lines = stream.text.splitlines()
    assert any(line.startswith("train cell: 1 of 2 blocks after ") and line.endswith(", loss 0.5") for line in lines)
    assert "\r" not in stream.text
    assert "%|" not in stream.text
