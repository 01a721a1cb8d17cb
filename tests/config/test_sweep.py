"""Sweeps by their words alone: joint studies, the command lines that mean them, search spaces, what is left."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from analysis.page.contents import commands
from evaluation.planning.points import lead
from matquant.command.multirun import Multirun
from matquant.config.compose import sweep_points
from matquant.config.study import load_study
from matquant.config.sweep import joint, load_joint, load_points
from matquant.config.sweeper import Sweeper, sample_points, whole_numbers
from matquant.config.syntax.overrides import for_hydra
from matquant.errors import FailedCellsError, UserError
from tests.processes import fork
from tests.tiny import tiny_overrides

TINY = tiny_overrides(Path("anywhere"))


def points_of(*overrides: str):
    return load_points(sweep_points([*TINY, *overrides])).studies


# --- joint studies ----------------------------------------------------------------------------------------------------


def test_the_points_of_a_sweep_are_one_study_and_its_cells_those_of_all_points():
    ((study, line),), points = load_joint([*TINY, "base=none,minmax", "bits=int8,int2"])
    assert study.name == study.setup.experiment == "sweep"
    assert len(points.studies) == 4
    assert [cell.base.kind for cell in study.cells] == ["none", "minmax", "minmax"]  # unquantized once
    assert line == [*TINY, "base=none,minmax", "bits=int8,int2"]
    first, second = commands(study.name, line)
    assert first.startswith("python run.py -m ")
    assert second.startswith("matquant report ")


def test_a_line_that_does_not_sweep_is_its_own_study():
    ((study, line),), _ = load_joint([*TINY, "base=minmax"])
    assert (study, line) == (load_study([*TINY, "base=minmax"]), [*TINY, "base=minmax"])
    assert commands("cell", line)[0].startswith("python run.py model=tiny")


def test_a_name_that_is_typed_and_the_name_of_an_experiment_stay():
    assert load_joint([*TINY, "name=mine", "base=minmax", "bits=int8,int2"])[0][0].study.name == "mine"
    assert load_joint([*TINY, "experiment=smoke", "seed=0,1"])[0][0].study.name == "smoke"


def test_points_that_are_read_otherwise_are_studies_of_their_own():
    joints, _ = load_joint([*TINY, "base=minmax", "bits=int8,int2", "readout.limit=2,3"])
    assert [study.name for study, _ in joints] == ["sweep-readout.limit-2", "sweep-readout.limit-3"]
    for study, line in joints:
        assert load_study(line) == study  # each has a command line of its own


def test_a_point_that_cannot_be_composed_is_left_out_and_kept_with_its_reason():
    (joint_study,), points = load_joint([*TINY, "weights=uniform,gemma2", "bits=int2,matquant"])
    assert len(joint_study.study.cells) == len(points.studies) == 3
    ((point, error),) = points.refused
    assert {"weights=gemma2", "bits=int2"} <= set(point)
    assert "int8 is not trained" in str(error)
    # A key that only one base has is no reason to give up the other.
    assert len(load_joint([*TINY, "base=minmax,omniquant", "base.num_steps=2,3"])[1].refused) == 2


def test_a_sweep_of_which_no_point_can_be_composed_is_one_sentence():
    with pytest.raises(UserError, match=r"there is no key base\.num_step "):
        load_joint([*TINY, "bits=int2,int4", "base.num_step=3"])


def test_points_that_a_sweeper_has_drawn_have_a_command_line_too():
    drawn = [
        [*TINY, "base=omniquant", f"base.num_steps={steps}", f"bits={bits}"]
        for steps, bits in ((2, "int2"), (7, "int4"))
    ]
    ((study, line),) = joint([(point, load_study(point)) for point in drawn])
    assert len(study.cells) == 2
    assert line[-1] == "cells=[{base.num_steps: 2, bits: int2}, {base.num_steps: 7, bits: int4}]"
    assert load_study(line) == study


def test_a_value_below_a_swept_axis_is_one_of_the_points_alone_and_no_point_changes():
    words = ["base=qat,gptq", "base.lr=1e-4", "seed=1", "bits=int2"]
    assert for_hydra(words) == ["base=qat,gptq", "base.lr=choice(1e-4)", "seed=1", "bits=int2"]
    assert [load_study([*TINY, "base=qat", *point[1:]]) for point in sweep_points(for_hydra(words))] == [
        load_study([*TINY, "base=qat", *words[1:]])
    ] * 2
    assert for_hydra(["base=qat", "base.lr=1e-4"]) == ["base=qat", "base.lr=1e-4"]


# --- search spaces ----------------------------------------------------------------------------------------------------


def test_of_a_search_space_every_choice_and_every_end_is_looked_at():
    words = ["hydra/sweeper=optuna", "base=omniquant", "bits=choice(2,matquant)", "base.num_steps=int(interval(1,9))"]
    points = [set(point) for point in sample_points(words)]
    assert [{"bits=int2", "base.num_steps=1"} <= point for point in points] == [True, False, False]
    assert {"bits=matquant", "base.num_steps=1"} <= points[1]
    assert {"bits=int2", "base.num_steps=9"} <= points[2]


def test_fractions_for_a_whole_number_are_refused_with_the_space_to_type():
    words = [*TINY, "hydra/sweeper=optuna", "base=omniquant"]
    with pytest.raises(UserError) as raised:
        whole_numbers([*words, "base.num_steps=interval(1,9)"])
    assert str(raised.value).endswith("write 'base.num_steps=int(interval(1,9))'")
    whole_numbers([*words, "base.num_steps=int(interval(1,9))", "base.clipping_lr=tag(log,interval(1e-4,0.1))"])


@pytest.mark.parametrize(
    ("sweeper", "higher", "message"),
    [
        (Sweeper("optuna", 9, [False]), [True], "add hydra.sweeper.direction=maximize"),
        (Sweeper("optuna", 9, [False]), [False, True], "add hydra.sweeper.direction=[minimize,maximize]"),
        (Sweeper("ax", 9, [True]), [False], "add hydra.sweeper.ax_config.experiment.minimize=true"),
        (Sweeper("nevergrad", 9, [False]), [True], "add hydra.sweeper.optim.maximize=true"),
        (Sweeper("nevergrad", 9, [False]), [True, True], "takes one objective"),
        (Sweeper("optuna", 9, [False]), [], "searches with a number; name it, such as objective=int2/log_pplx"),
    ],
)
def test_a_search_in_the_wrong_direction_is_one_sentence(sweeper, higher, message):
    with pytest.raises(UserError) as raised:
        sweeper.check([f"goal{number}" for number in range(len(higher))], higher)
    assert message in str(raised.value)


def test_an_objective_is_not_swept():
    with pytest.raises(UserError, match=r"several are one list: objective=\[a,b\]"):
        lead([*TINY, "objective=int2/log_pplx,int4/log_pplx"])


# --- words ------------------------------------------------------------------------------------------------------------


def multirun(**facts) -> Multirun:
    return Multirun(load_study, frozenset({"bits"}), goals=("int2/log_pplx",), higher=(False,), **facts)


def test_a_multirun_says_what_is_left_what_failed_and_what_was_best():
    leader = multirun(total=4)
    leader.measure(["bits=int8", "seed=0"], [3.0])
    leader.measure(["bits=int4", "seed=0"], [2.5])
    assert "2 of 4 points have ended, about 0 s left" in leader.outlook()
    assert leader.interrupted() == "2 of 4 points have ended, 2 are left"
    assert leader.best() == "best: int2/log_pplx 2.5 at bits=int4"
    assert leader.worst == [math.inf]
    assert leader.error() is None
    leader.lose(["bits=int2", "seed=0"], FailedCellsError("it was killed"))
    assert isinstance(leader.error(), FailedCellsError)
    assert str(leader.error()).startswith("1 of 4 points failed (point bits=int2: it was killed)")
    leader.lose(["bits=int3", "seed=0"], UserError("it cannot be"))
    assert not isinstance(leader.error(), FailedCellsError)  # exit status 2


def test_points_that_a_sweeper_draws_in_vain_are_no_mistake_as_long_as_others_are_measured():
    leader = multirun(total=4, is_drawn=True)
    leader.lose(["bits=int2"], UserError("it cannot be"))
    assert leader.error() is not None
    leader.measure(["bits=int8"], [3.0])
    assert leader.error() is None


# --- whole sweeps -----------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: str):
    process = fork("run.py", *tiny_overrides(folder), "readout.tasks=[]", *arguments)
    process.wait()
    return process


def test_a_multirun_ends_in_one_table_and_matquant_report_in_the_same(tmp_path):
    words = ["base=minmax", "bits=matquant,int2", "grid=group_32,group_128", "objective=int2/log_pplx"]
    done = run(tmp_path, "-m", *words)
    assert done.returncode == 2  # half of the points are refused, before the first of the others starts
    assert "2 of 4 points are run" in done.stderr.partition("point 1/4: ")[0]
    assert "2 of 4 points were refused" in done.stderr.splitlines()[-1]
    assert "best: int2/log_pplx" in done.stdout
    assert [path.name for path in tmp_path.glob("out/*")] == ["sweep"]
    record, page = (tmp_path / "out/sweep/.drawn.json"), tmp_path / "out/sweep/report.html"
    before = page.stat().st_mtime_ns
    again = fork(
        "-m", "matquant", "report", "--no-notebook", *tiny_overrides(tmp_path), "readout.tasks=[]", *words
    ).check()
    assert again.stdout.splitlines() == [line for line in done.stdout.splitlines() if not line.startswith("best: ")]
    assert page.stat().st_mtime_ns == before, record
    assert "left out" not in again.stderr
