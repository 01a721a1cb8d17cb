"""The stage runner: locks before it looks again, one tracker for all stages, a status for each that has work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from matquant.errors import UserError
from matquant.runs.folder import RunDir
from matquant.runs.stage_runner import Work, run_alone
from matquant.runs.status import read_status
from matquant.runs.stopping import Stopped
from matquant.runs.tracking import NoTracker


@pytest.fixture
def told() -> list[str]:
    """The order in which things happen."""
    return []


@pytest.fixture
def go(tmp_path, told) -> Callable[..., RunDir]:
    @contextmanager
    def tracker() -> Iterator[NoTracker]:
        told.append("tracker opened")
        try:
            yield NoTracker()
        finally:
            told.append("tracker finished")

    def run(*works: Work, is_wanted: Callable[[], bool] = lambda: True, leftovers: tuple[Path, ...] = ()) -> RunDir:
        folder = RunDir(tmp_path, "cell")
        run_alone(folder, works, is_wanted=is_wanted, leftovers=leftovers, open_tracker=tracker)
        return folder

    return run


def work(told: list[str], stage: str, *, to_do: bool = True) -> Work:
    return Work(stage, lambda tracker, beat: told.append(stage), lambda: to_do)


def state(run: RunDir, stage: str) -> str | None:
    status = read_status(run.status(stage))
    return None if status is None else status.state


def test_stages_follow_one_another_under_one_tracker_and_each_has_a_status(go, told):
    run = go(work(told, "train"), work(told, "evaluate"))
    assert told == ["tracker opened", "train", "evaluate", "tracker finished"]
    assert (state(run, "train"), state(run, "evaluate")) == ("done", "done")


def test_a_stage_that_has_nothing_to_do_leaves_no_status(go, told):
    run = go(work(told, "train", to_do=False), work(told, "evaluate"))
    assert told == ["tracker opened", "evaluate", "tracker finished"]
    assert (state(run, "train"), state(run, "evaluate")) == (None, "done")


def test_where_nothing_is_wanted_nothing_is_touched(go, told):
    run = go(work(told, "train"), is_wanted=lambda: False)
    assert told == []
    assert not run.path.exists()


def test_where_another_process_has_done_everything_meanwhile_nothing_is_done(go, told):
    answers = [True, False]
    run = go(work(told, "train"), is_wanted=lambda: answers.pop(0))
    assert answers == told == []
    assert state(run, "train") is None


def test_leftovers_are_removed_before_the_work_begins(go, tmp_path):
    left = tmp_path / "cell" / "state" / ".step-3.tmp"
    left.mkdir(parents=True)
    there: list[bool] = []
    go(Work("train", lambda *_: there.append(left.exists()), lambda: True), leftovers=(tmp_path / "cell",))
    assert there == [False]


def test_a_stage_that_is_stopped_says_so_and_those_behind_it_do_not_start(go, told, tmp_path):
    def stop(*_: object) -> None:
        raise Stopped("stopped after block 3, as asked; the state is saved")

    with pytest.raises(Stopped):
        go(Work("train", stop, lambda: True), work(told, "evaluate"))
    status = read_status(RunDir(tmp_path, "cell").status("train"))
    assert status is not None
    assert (status.state, status.reason) == ("stopped", "interrupted")
    assert status.message == "stopped after block 3, as asked; the state is saved"
    assert "evaluate" not in told


def test_a_stage_that_the_others_can_do_without_refuses_at_the_end(go, told, tmp_path):
    def refuse(*_: object) -> None:
        raise UserError("a budget of 2 bits is out of reach")

    with pytest.raises(UserError, match="a budget of 2 bits"):
        go(Work("search", refuse, lambda: True, is_needed=False), work(told, "evaluate"))
    assert told == ["tracker opened", "evaluate", "tracker finished"]
    run = RunDir(tmp_path, "cell")
    assert (state(run, "search"), state(run, "evaluate")) == ("failed", "done")


def test_nothing_follows_a_stage_that_the_others_need(go, told):
    def refuse(*_: object) -> None:
        raise UserError("model=llama is not to be had")

    with pytest.raises(UserError, match="not to be had"):
        go(Work("train", refuse, lambda: True), work(told, "evaluate"))
    assert "evaluate" not in told


def test_ranks_that_are_not_the_main_one_only_help(go, told, monkeypatch):
    answers = [True, False, True]  # something is wanted; the first stage has nothing to do, the second has
    monkeypatch.setattr("matquant.runs.stage_runner.is_main", lambda: False)
    monkeypatch.setattr("matquant.runs.stage_runner.agreed", lambda _: answers.pop(0))
    helped = [Work(name, lambda *_: None, lambda: True, help=lambda name=name: told.append(name)) for name in "ab"]
    run = go(*helped, work(told, "evaluate"))
    assert (told, answers) == (["b"], [])
    assert not run.path.exists()
