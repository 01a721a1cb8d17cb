"""The bars and the table that a person watches during an evaluation."""

from __future__ import annotations

from evaluation.board import Board


def test_a_row_for_each_plan_under_one_head_and_a_bar_over_all(capsys):
    told: list[tuple[int, int]] = []
    with Board("cell", {"int8": 10, "int2": 10}, lambda done, total: told.append((done, total))) as board:
        for plan, accuracy in (("int8", 0.5), ("int2", 0.25)):
            with board.plan(plan) as line:
                line.update(4)
                line.update(6)
                line.add("piqa", {"acc": 0.9, "acc_stderr": 0.1, "acc_norm": accuracy})
                line.add("log_pplx", {"log_pplx": 3.25})
                line.add("no number at all", {})
    shown = capsys.readouterr().err
    rows = [text.split() for text in shown.replace("\r", "\n").splitlines()]
    assert ["plan", "piqa", "log_pplx"] in rows
    assert sum(row[:1] == ["plan"] for row in rows) == 1
    assert any(row[:3] == ["int8", "50.0", "3.250"] for row in rows)
    assert any(row[:3] == ["int2", "25.0", "3.250"] for row in rows)
    assert "evaluate cell" in shown
    assert "20/20" in shown
