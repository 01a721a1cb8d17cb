"""The forecast: made before a study starts, in proportion to what is missing, and corrected by what stages take."""

from __future__ import annotations

import shutil

import pytest

import run
from evaluation.board import duration
from evaluation.planning import forecast as forecasting
from evaluation.planning import speed
from evaluation.planning.forecast import REPORT_S, START_S, Forecast, forecast
from evaluation.planning.work import comparing_operations, reading_operations, size_of
from matquant.notation import Plan
from matquant.runs.stopping import Stopped
from matquant.runs.tracking import NoTracker
from matquant.search.stage import search
from matquant.training.train import train
from tests.tiny import TINY_GPTQ


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(forecasting.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_what_a_stage_took_corrects_those_that_follow(clock):
    made = Forecast({("a", "train"): 60.0, ("a", "evaluate"): 30.0, ("b", "evaluate"): 30.0})
    assert made.seconds_left == 120 + REPORT_S
    with made.stage("a", "train"):
        clock(90)  # half as long again as predicted
    assert made.seconds_left == 1.5 * 60 + REPORT_S
    with made.stage("a", "evaluate"):
        clock(0)
    assert made.seconds_left == 30 + REPORT_S  # 90 s taken for 90 s predicted
    with made.stage("b", "evaluate"):
        clock(30)
    assert made.seconds_left is None
    assert str(made) == ""


def test_a_stage_that_fails_is_no_longer_to_come_and_says_nothing_about_speed(clock):
    made = Forecast({("a", "train"): 60.0, ("b", "train"): 60.0})

    def fail() -> None:
        with made.stage("a", "train"):
            clock(1)
            raise Stopped("as asked")

    with pytest.raises(Stopped):
        fail()
    assert made.seconds_left == 60 + REPORT_S


def test_on_a_machine_of_unknown_speed_nothing_is_said_before_the_first_stage_has_ended(clock):
    made = Forecast({("a", "evaluate"): 1.0, ("b", "evaluate"): 3.0}, is_guess=True)
    assert made.seconds_left is None
    assert str(made) == ""
    with made.stage("a", "evaluate"):
        clock(200)
    assert made.seconds_left == 600 + REPORT_S
    assert str(made) == ", about 10 min left in all"


@pytest.fixture
def study(tiny_study, monkeypatch):
    """Two cells on a machine so slow that the work of a stage counts and its start does not."""
    monkeypatch.setattr(speed, "product_speed", lambda dtype: 1e3 if dtype == "float32" else 1e2)
    return tiny_study("cells=[{base:[none]},{base:[omniquant],base.num_steps:[2],base.batch_size:[2]}]")


def test_only_what_is_missing_is_counted(study):
    none, omniquant = study.cells
    first = forecast(study).predicted
    assert set(first) == {(none.id, "evaluate"), (omniquant.id, "train"), (omniquant.id, "evaluate")}
    # One plan of the one, three of the other, each of them the same work, and compared with the unquantized model.
    reading = {cell_id: seconds - START_S for (cell_id, stage), seconds in first.items() if stage == "evaluate"}
    readout, size = study.setup.readout, size_of(omniquant, study.setup.paths.cache)
    one, three = (
        num + comparing_operations(omniquant, readout, size, num) / reading_operations(readout, size, 1)
        for num in (1, 3)
    )
    assert reading[omniquant.id] == pytest.approx(three * reading[none.id])

    run.run_cell(none, study.setup)
    assert set(forecast(study).predicted) == {(omniquant.id, "train"), (omniquant.id, "evaluate")}
    run.run_cell(omniquant, study.setup)
    assert forecast(study).predicted == {}
    for path in study.setup.paths.results.glob(f"{omniquant.id}/int2/*"):
        path.unlink()
    left = forecast(study).predicted
    assert left[omniquant.id, "evaluate"] - START_S == pytest.approx(one * reading[none.id])
    shutil.rmtree(study.setup.paths.runs / omniquant.id / "checkpoint")
    assert (omniquant.id, "train") in forecast(study).predicted


def test_an_interrupted_training_counts_for_what_is_left_of_it(study):
    omniquant = study.cells[1]
    whole = forecast(study).predicted[omniquant.id, "train"] - START_S
    state = study.setup.paths.runs / omniquant.id / "state"
    state.mkdir(parents=True)
    (state / "model.layers.0.safetensors").touch()
    assert forecast(study).predicted[omniquant.id, "train"] - START_S == pytest.approx(whole / 2)


def test_searches_are_a_stage_until_their_plans_are_found(study, tiny_study):
    searched = tiny_study(*TINY_GPTQ, "readout.tasks=[]", "readout.plans=[int4, dynamic_program@3]")
    (cell,), keys = searched.cells, {"train", "search", "evaluate"}
    assert {stage for _, stage in forecast(searched).predicted} == keys
    train(cell, searched.setup, NoTracker())
    search(cell, searched.setup, [Plan.parse("dynamic_program@3")])
    assert {stage for _, stage in forecast(searched).predicted} == {"evaluate"}


def test_a_dtype_that_is_emulated_takes_as_much_longer(study):
    bfloat16 = study.setup.model_copy(update={"readout": study.setup.readout.model_copy(update={"dtype": "bfloat16"})})
    slow = type(study)(study.name, study.cells, bfloat16)
    key = (study.cells[0].id, "evaluate")
    seconds, slower = (forecast(one).predicted[key] - START_S for one in (study, slow))
    assert slower == pytest.approx(10 * seconds)


def test_durations_are_rounded_to_what_is_known():
    assert [duration(seconds) for seconds in (45.4, 99, 720, 12_240)] == ["45 s", "99 s", "12 min", "3.4 h"]
