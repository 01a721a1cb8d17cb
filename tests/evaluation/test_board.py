"""The bars and the table that a person watches during an evaluation."""

from __future__ import annotations

import re

import pytest

from evaluation.board import Board

TASKS = {"arc_challenge": {"acc": 0.9, "acc_stderr": 0.1, "acc_norm": 0.5}, "log_pplx": {"log_pplx": 3.25}}


def shown(capsys, plans: dict[str, int]) -> str:
    with Board("cell", plans, lambda done, total: None) as board:
        for plan, steps in plans.items():
            with board.plan(plan) as line:
                line.update(steps - 6)
                line.update(6)
                for task, metrics in TASKS.items():
                    line.add(task, metrics)
                line.add("no number at all", {})
    return capsys.readouterr().err


def test_a_row_for_each_plan_under_one_whole_head(capsys):
    lines = shown(capsys, {"int8": 10, "dynamic_program_linear@3": 10}).splitlines()
    head, *rows = lines
    assert head.split() == ["plan", "arc_challenge", "log_pplx", "time"]
    assert [row.split()[:3] for row in rows] == [
        [plan, "50.0", "3.250"] for plan in ("int8", "dynamic_program_linear@3")
    ]
    # Every number ends where its name ends.
    ends = [match.end() for match in re.finditer(r"\S+", head)][1:3]
    assert all([match.end() for match in re.finditer(r"\S+", row)][1:3] == ends for row in rows)


def test_the_beat_counts_whether_somebody_watches_or_not(capsys):
    told: list[tuple[int, int]] = []
    with (
        Board("cell", {"int8": 10}, lambda done, total: told.append((done, total))) as board,
        board.plan("int8") as line,
    ):
        line.update(4)
        line.update(6)
    assert told == [(4, 10), (10, 10)]


@pytest.mark.parametrize("watched", [True, False], ids=["terminal", "file"])
def test_a_bar_over_all_plans_is_drawn_on_a_terminal_alone(watched, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: watched)
    text = shown(capsys, {"int8": 10, "int2": 10})
    assert ("20/20" in text) == watched
    assert ("\r" in text) == watched
