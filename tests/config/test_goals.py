"""Objectives: the number that a sweep is about, named before anything is computed and read from results."""

from __future__ import annotations

import math

import pytest

from evaluation.objective import are_better_high, as_returned, values_of
from matquant.config.study import load_study
from matquant.errors import UserError
from tests.made_results import measure
from tests.own_tasks import write, write_own_tasks
from tests.tiny import tiny_overrides


def test_an_objective_is_a_plan_and_a_metric(tiny_study):
    study = tiny_study("objective=[int2/log_pplx,int4/piqa,int8/task_avg,int2/effective_bits]")
    assert list(map(str, study.goals)) == ["int2/log_pplx", "int4/piqa", "int8/task_avg", "int2/effective_bits"]
    assert are_better_high(study) == [False, True, True, False]
    assert tiny_study("objective=int2/log_pplx").goals == tiny_study("objective=[int2/log_pplx]").goals
    assert tiny_study("objective=null").goals == tiny_study().goals == ()


def test_an_objective_is_better_in_the_direction_that_the_yaml_of_its_task_says(tiny_study, tmp_path):
    folder = write_own_tasks(tmp_path / "tasks")
    less = {"metric": "acc", "aggregation": "mean", "higher_is_better": False}
    write(folder, "odd.yaml", {"include": "_choices", "task": "odd", "metric_list": [less]})
    write(folder, "loss_of.yaml", {"include": "_choices", "task": "loss_of", "metric_list": None})
    tasks = "readout.tasks=[colors,odd,my_text,loss_of]"
    goals = "int2/colors,int2/odd,int2/odd/acc,int2/my_text,int2/my_text/word_perplexity,int2/loss_of"
    study = tiny_study(f"readout.include_path={folder}", tasks, f"objective=[{goals}]")
    assert are_better_high(study) == [True, False, False, False, False, True]  # a task's own name says nothing


def test_codes_that_were_trained_with_the_overflow_bucket_are_meant_with_it(tiny_study):
    study = tiny_study("extra_bit=on", "objective=int2/log_pplx")
    assert str(study.goals[0].plan_of(study.cells[0], study.setup.readout)) == "int2+ep"


@pytest.mark.parametrize(
    ("slicing", "read_by", "plan", "meant"),
    [
        ("floor", "null", "int2", "int2_floor"),
        ("floor", "half_up", "int2", "int2"),
        ("half_up", "centre", "int2", "int2_centre"),
        ("floor", "null", "pyramid@3", "pyramid@3_floor"),
        ("floor", "null", "int8_floor", "int8"),
    ],
)
def test_an_objective_is_read_by_the_rule_that_its_cell_is_read_by(slicing, read_by, plan, meant, tiny_study):
    words = ["base=omniquant", "bits=matquant", f"slicing={slicing}", f"readout.slicing={read_by}"]
    study = tiny_study(*words, f"readout.plans=[{plan}]", f"objective={plan}/log_pplx")
    assert [str(one) for one in study.setup.readout.plans_of(study.cells[0])] == [meant]
    assert str(study.goals[0].plan_of(study.cells[0], study.setup.readout)) == meant


def test_a_rule_that_is_named_is_kept_where_the_overflow_bucket_was_trained(tiny_study):
    study = tiny_study("extra_bit=on", "readout.plans=[int8,int4,int2_floor]")
    assert [str(plan) for plan in study.setup.readout.plans_of(study.cells[0])] == ["int8", "int4+ep", "int2_floor"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=int2"], "objective=int2 is not PLAN/METRIC; write a plan and a metric: objective=int2/log_pplx"),
        (["objective=log_pplx/int2"], "'log_pplx' is not a read-out plan"),
        (
            ["objective=int2/log_ppl"],
            "log_ppl is not measured; did you mean log_pplx? choose one of log_pplx, task_avg",
        ),
        (["objective=int2/boolq"], "boolq is not measured; choose one of log_pplx, task_avg, "),
        (["objective=int2/log_pplx", "perplexity=null"], "perplexity=null measures none"),
        (["objective=int2/task_avg", "readout.tasks=[]"], "no task is measured"),
        (["objective=int2/task_avg/acc"], "task_avg is a single number; write objective=int2/task_avg"),
        (["objective=int3/log_pplx"], "is not read at int3; choose one of int8, int4, int2"),
        (["base=none", "objective=int2/log_pplx"], "is not read at int2; choose one of full"),
        (["bits=int4", "objective=int2/log_pplx"], "is not read at int2; choose one of int4"),
        (["cells=[{bits:[int8,int4]}]", "objective=int4/log_pplx"], "is a number of one cell, and these are 2 cells"),
        (["objective=3"], "objective=3 is not PLAN/METRIC"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_objective_that_a_cell_does_not_have_is_one_sentence(overrides, message, tmp_path):
    with pytest.raises(UserError) as raised:
        load_study([*tiny_overrides(tmp_path), *overrides])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_values_are_those_of_the_results_and_seeds_count_as_their_mean(tiny_study):
    study = tiny_study(
        "objective=[int2/log_pplx,int2/piqa/acc,int2/task_avg,int2/effective_bits]", "cells=[{seed:[0,1]}]"
    )
    measure(study)
    accuracy = 0.5 + 0.02 + 0.0005  # of int2, and half of what the second seed has more
    assert values_of(study) == pytest.approx([3 + math.e, accuracy - 0.1, accuracy, 2.0])


def test_a_value_that_is_not_measured_is_one_sentence(tiny_study):
    with pytest.raises(UserError, match=r"objective=int2/log_pplx: log_pplx of tiny-.* at int2 is not measured"):
        values_of(tiny_study("objective=int2/log_pplx"))


def test_a_sweeper_gets_a_number_or_a_list():
    assert as_returned([]) is None
    assert as_returned([1.5]) == 1.5
    assert as_returned([1.5, math.inf]) == [1.5, math.inf]
