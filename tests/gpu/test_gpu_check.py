"""The frame of the GPU check: what parts say is kept, what fails is said in words, and nothing that failed is lost."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import check
from benchmarks.gpu.check import Found, in_words, main, page, run
from benchmarks.gpu.lines import Line, Scale, estimated, holds

ABOUT = {"device": "Some card", "memory": "80 GB", "torch": "2.13.0"}
CARD, CPU = Scale(torch.device("cuda"), small=False), Scale(torch.device("cpu"), small=True)


@pytest.mark.parametrize(("value", "fails"), [(0.9, True), (1.0, False), (2.0, False), (4.0, False), (4.1, True)])
def test_an_estimate_that_is_off_by_more_than_a_factor_of_two_fails(value, fails):
    assert bool(estimated("peak", value, 2.0, "GB", scale=CARD).failed) == fails


def test_an_estimate_of_a_gpu_is_not_held_against_a_cpu():
    assert not estimated("peak", 100.0, 1.0, "GB", scale=CPU).failed


@pytest.mark.parametrize(("difference", "fails"), [(0.0, False), (1e-4, False), (2e-4, True), (float("nan"), True)])
def test_a_difference_holds_up_to_its_bound_and_a_nan_never(difference, fails):
    assert bool(holds("loss", difference, 1e-4).failed) == fails


def test_a_part_that_ends_badly_fails_with_its_last_words_and_keeps_the_others():
    found = run("no_such_part", [])
    assert "No module named benchmarks.gpu.no_such_part" in found.failed
    good = Found("nested", [Line("int3", 2.5, "s")])
    written = page([Found("fits", failed=found.failed), good], ABOUT)
    assert "| int3 | 2.5 | s |" in written
    assert "- fits: ended with status 1" in written


def test_every_failed_line_stands_at_the_end_of_the_page():
    lines = [Line("a", 1.0), Line("b", failed="3 bits differ")]
    written = page([Found("agreement", lines)], ABOUT)
    assert written.endswith("## What failed\n\n- agreement: b: 3 bits differ\n")
    assert page([Found("agreement", lines[:1])], ABOUT).endswith("Nothing.\n")


def test_a_line_says_its_measurement_what_it_is_held_against_and_the_ratio():
    line = Line("step", 0.5, "s", 0.25, "estimate", "24 steps")
    assert in_words(line) == "step: 0.5 s (estimate 0.25, 2.00x); 24 steps"
    assert in_words(Line("humming", note="skipped: not installed")) == "humming; skipped: not installed"


def test_both_files_are_written_after_every_part_and_the_status_says_whether_one_failed(tmp_path, monkeypatch, capsys):
    said = {"fits": Found("fits", [Line("step", 1.0, "s")]), "nested": Found("nested", failed="ended with status 1")}
    monkeypatch.setattr(check, "run", lambda part, options, limit_s: said[part])
    assert main(["fits", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "nothing failed" in capsys.readouterr().out
    assert main(["fits", "nested", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "nested: ended with status 1" in capsys.readouterr().out
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [part["part"] for part in content["parts"]] == ["fits", "nested"]
    assert (tmp_path / "gpu_check.md").read_text().startswith("# GPU check: CPU\n")


def test_a_part_that_the_time_does_not_reach_to_is_said_to_be_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "TOTAL_S", 0.0)
    monkeypatch.setattr(check, "machine", lambda device: ABOUT)
    assert main(["fits", "--device", "cuda", "--out", str(tmp_path)]) == 1
    assert "fits: left out: 0 s were left; name it to run it alone" in capsys.readouterr().out


def test_an_unknown_part_is_refused_with_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["fit"])
    assert "there is no part fit; there are: tests, agreement, fits" in capsys.readouterr().err
