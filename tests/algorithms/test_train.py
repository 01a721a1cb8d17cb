"""A training run in its folder: a state is complete or absent, stopping loses nothing, and resuming is exact."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from matquant.runs import stopping
from matquant.runs.files import remove_leftovers
from matquant.runs.folder import RunDir
from matquant.runs.stopping import Stopped
from matquant.runs.tracking import NoTracker
from matquant.training import train as module
from matquant.training.progress import DiskProgress
from matquant.training.train import train
from tests.ranks import RESUMED, asked_to_stop, fit, run_dir, said, study
from tests.tiny import TINY_GPTQ, TINY_OMNIQUANT

STOPPED = "stopped after a step, as asked; the state is saved"


def bits(run: RunDir) -> tuple[bytes, bytes]:
    return run.log.read_bytes(), (run.checkpoint / "nested.safetensors").read_bytes()


@pytest.fixture
def progress(tmp_path):
    def make(save_every_min: float = 0.0) -> DiskProgress:
        cell, setup = study(tmp_path, f"save_every_min={save_every_min}")
        return DiskProgress(cell, setup, NoTracker())

    return make


def state_of(step: int, value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(step), "weight": torch.full((3, 2), value)}


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, after):
    expected = fit(tmp_path / "undisturbed", *RESUMED)
    with asked_to_stop(after):
        assert said(Stopped, lambda: fit(tmp_path / "stopped", *RESUMED)) == STOPPED
    stopped = run_dir(tmp_path / "stopped", *RESUMED)
    assert bits(fit(tmp_path / "stopped", *RESUMED)) == bits(expected)
    assert not stopped.state.exists()


@pytest.mark.parametrize("base", [TINY_OMNIQUANT, TINY_GPTQ], ids=["omniquant", "gptq"])
def test_a_block_wise_fit_stops_after_a_finished_block(tmp_path, base):
    cell, setup = study(tmp_path / "stopped", base=base)
    expected = study(tmp_path / "undisturbed", base=base)
    train(*expected, NoTracker())
    run = RunDir(setup.paths.runs, cell.id)
    for finished in (1, 2):
        stopping.request()
        try:
            assert said(Stopped, lambda: train(cell, setup, NoTracker())).startswith("stopped after ")
        finally:
            stopping.reset()
        assert len(list(run.state.glob("*.safetensors"))) == finished
    train(cell, setup, NoTracker())
    assert bits(run) == bits(RunDir(expected[1].paths.runs, cell.id))


def test_the_newest_complete_state_wins_and_those_before_it_are_removed(progress):
    saving = progress()
    folder = saving.run.state
    (folder / "step-00000009").mkdir(parents=True)  # without .metadata: a state that was never finished
    for step in (1, 2):
        saving.save(lambda step=step: state_of(step, float(step)))
        assert [path.name for path in folder.iterdir()] == [f"step-{step:08d}"]
    (folder / "step-00000009").mkdir()
    found = state_of(0)
    assert progress().load(found)
    assert int(found["step"]) == 2
    assert torch.equal(found["weight"], torch.full((3, 2), 2.0))


def test_where_there_is_no_state_none_is_loaded(progress):
    found = state_of(0, 7.0)
    assert not progress().load(found)
    assert torch.equal(found["weight"], torch.full((3, 2), 7.0))


def test_a_state_is_written_when_it_is_time_or_somebody_asked_to_stop(progress):
    saving = progress(60.0)
    saving.save(lambda: pytest.fail("it is not time"))
    stopping.request()
    try:
        with pytest.raises(Stopped):
            saving.save(lambda: state_of(5))
    finally:
        stopping.reset()
    assert [path.name for path in saving.run.training_states()] == ["step-00000005"]


def test_a_state_cut_short_by_a_kill_is_cleared_away(progress):
    run = progress().run
    half = run.state / ".step-00000004.tmp"
    half.mkdir(parents=True)
    (half / "__0_0.distcp").touch()
    assert run.training_states() == []
    remove_leftovers(run.path)
    assert not half.exists()


def test_only_who_was_asked_stops():
    assert not stopping.requested()
    stopping.request()
    assert stopping.requested()
    stopping.reset()
    assert not stopping.requested()
    assert not issubclass(Stopped, Exception)


def test_where_an_operation_has_no_deterministic_form_the_fit_goes_on_without_and_says_so(
    tiny_study, monkeypatch, caplog
):
    study, fit, calls = tiny_study("base=minmax", "bits=int8"), module._fit, []

    def first_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError(
                "cumsum_cuda does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'. You can turn it off"
            )
        return fit(*arguments)

    monkeypatch.setattr(module, "_fit", first_fails)
    train(study.cells[0], study.setup, NoTracker())
    assert len(calls) == 2
    assert "cumsum_cuda does not have a deterministic implementation: another run of " in caplog.text


def test_any_other_error_of_a_fit_is_no_reason_to_fit_again(tiny_study, monkeypatch):
    study = tiny_study("base=minmax", "bits=int8")
    monkeypatch.setattr(module, "_fit", mock.Mock(side_effect=RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        train(study.cells[0], study.setup, NoTracker())
    module._fit.assert_called_once()
