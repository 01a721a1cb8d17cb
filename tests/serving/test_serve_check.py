"""The runner of engine round trips, and the count of bytes that a process reads."""

from __future__ import annotations

import sys

import pytest

from benchmarks.page_cache import bytes_in_memory, forget
from benchmarks.serve_check import Outcome, main, outcome_of, round_trips, run


@pytest.mark.parametrize(
    ("status", "lines", "outcome"),
    [
        (0, ["a table"], Outcome.AGREES),
        (0, ["skipped: llama_cpp: it cannot be installed"], Outcome.SKIPPED),
        (1, ["skipped: int8"], Outcome.DISAGREES),
        (1, ["a table"], Outcome.DISAGREES),
    ],
)
def test_only_an_engine_that_is_there_can_disagree(status, lines, outcome):
    assert outcome_of(status, lines) is outcome


def test_a_round_trip_prints_as_it_goes_and_says_why_it_was_skipped(capsys):
    found = run([sys.executable, "-c", "print('working'); print('skipped: vllm: no wheel')"])
    assert found == (Outcome.SKIPPED, "vllm: no wheel")
    assert capsys.readouterr().out == "  working\n  skipped: vllm: no wheel\n"


def test_round_trips_are_the_modules_that_have_a_main(tmp_path):
    (tmp_path / "llama_cpp.py").write_text("def main() -> int:\n    return 0\n")
    (tmp_path / "environment.py").write_text("def make() -> None: ...\n")
    assert round_trips(tmp_path) == ["llama_cpp"]
    assert "environment" not in round_trips()


def test_an_engine_that_nobody_knows_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["lama_cpp"])
    assert ended.value.code == 2
    assert "there is no engine lama_cpp; there are:" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked")
def test_a_file_that_was_just_read_is_in_memory_and_an_empty_one_has_no_bytes(tmp_path):
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.write_bytes(b"0" * 10_000)
    empty.write_bytes(b"")
    file.read_bytes()
    assert bytes_in_memory([file, empty]) == 10_000
    forget([file])
    assert bytes_in_memory([file]) <= 10_000
