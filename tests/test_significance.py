"""Paired tests: exact where they can be, close to theory where they are drawn, and silent about equals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.frame.load import load_frame
from analysis.frame.significance import (
    TASK_AVG,
    against_reference,
    differences,
    document_values,
    mcnemar,
    paired_bootstrap,
)
from analysis.frame.summary import summary
from analysis.report.compare import difference_lines, measured
from analysis.tables.drawing import to_text
from analysis.tables.summary_table import summary_table
from analysis.tables.typeset import BETTER, WORSE
from evaluation.results.store import ResultStore
from matquant.errors import UserError
from tests.made_results import MATQUANT, measure, quantized, study, unquantized

OUTCOMES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=9)


def exact_p_value(pairs: list[tuple[int, int]]) -> float:
    """McNemar by enumeration: all ways in which the documents that disagree could have gone."""
    disagreements = [ours - theirs for ours, theirs in pairs if ours != theirs]
    observed = abs(sum(disagreements))
    ways = list(itertools.product((-1, 1), repeat=len(disagreements)))
    return sum(abs(sum(way)) >= observed for way in ways) / len(ways)


@given(OUTCOMES)
@settings(deadline=None)
def test_mcnemar_is_the_exact_test(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = mcnemar(ours, theirs)
    assert found.p_value == pytest.approx(exact_p_value(pairs))
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))


@given(OUTCOMES)
@settings(deadline=None, max_examples=20)
def test_swapping_the_two_swaps_the_sign_and_keeps_the_p_value(pairs):
    ours, theirs = (list(side) for side in zip(*pairs, strict=True))
    there, back = mcnemar(ours, theirs), mcnemar(theirs, ours)
    assert there.mean == -back.mean
    assert there.p_value == pytest.approx(back.p_value)


def test_the_bootstraps_error_is_that_of_the_paired_differences():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(3.0, 1.0, 400), rng.normal(3.1, 1.0, 400)
    found = paired_bootstrap([(ours, theirs)])
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.stderr == pytest.approx((ours - theirs).std(ddof=1) / math.sqrt(400), rel=0.05)


def test_pairing_finds_a_small_difference_in_large_noise():
    rng = np.random.default_rng(0)
    theirs = rng.normal(3.0, 5.0, 50)
    found = paired_bootstrap([(theirs - 0.05 + rng.normal(0, 0.05, 50), theirs)])
    assert found.significant
    assert found.mean < 0


@pytest.mark.parametrize("documents", [{}, {"doc_id": [0, 1]}, {"doc_id": [0, 1], "em": [0.5, None]}])
def test_a_task_without_a_number_for_each_document_is_not_compared(documents):
    assert document_values(documents) is None


def test_strata_weigh_alike_whatever_their_size():
    small, large = ([1.0] * 4, [0.0] * 4), ([0.0] * 400, [0.0] * 400)
    found = paired_bootstrap([small, large])
    assert found.mean == 0.5
    assert found.num_documents == 404


def test_what_is_equal_is_never_significant():
    values = [0.0, 1.0, 1.0, 0.0]
    assert mcnemar(values, values).p_value == 1
    assert paired_bootstrap([(values, values)]).p_value == 1


def test_tasks_that_cancel_out_are_a_tie():
    differences = ([0.1] * 9, [0.2] * 9, [-0.3] * 9)  # their sum is 5.6e-17
    found = paired_bootstrap([(values, [0.0] * 9) for values in differences])
    assert found.p_value == 1


def test_false_alarms_are_as_rare_as_the_level_says():
    rng = np.random.default_rng(1)
    alarms = sum(
        paired_bootstrap([(rng.normal(size=60), rng.normal(size=60))], draws=1000, seed=run).significant
        for run in range(200)
    )
    assert 2 <= alarms <= 22  # 10 expected


def test_tasks_that_only_one_side_has_leave_no_task_average():
    ours, theirs = {"piqa": np.ones(3), "boolq": np.ones(3)}, {"piqa": np.zeros(3)}
    assert list(differences(ours, theirs)) == ["piqa"]
    assert TASK_AVG in differences(ours, {**theirs, "boolq": np.zeros(3)})


# --- in tables -------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """An int2 baseline that is right on 52 of 100 documents, and MatQuant, right on 92."""
    matquant = quantized(MATQUANT)
    made = study(tmp_path, [unquantized(), quantized({"int2": 1.0}, parent_bits=2), matquant])
    measure(made)
    measure(study(tmp_path, [matquant]), accuracy=0.9)
    return made


def load(made):
    return load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results))


def test_a_row_is_compared_with_the_baseline_of_its_width(made):
    loaded = load(made)
    rows = summary(loaded)
    found = against_reference(rows, loaded)
    assert set(found["plan"]) == {"int2"}  # other widths have no other row
    assert set(found["reference"]) == {"Baseline (OmniQuant)"}
    by_task = found.set_index("task")
    assert by_task.loc["boolq", "test"] == "McNemar"
    assert by_task.loc["boolq", "difference"] == pytest.approx(0.4)
    assert by_task.loc[TASK_AVG, "p_value"] < 0.001
    assert by_task.loc["log_pplx", "p_value"] == 1  # the same nats in every block


def test_the_table_marks_what_is_significant_and_says_how(made):
    loaded = load(made)
    rows = summary(loaded)
    text = to_text(summary_table(rows, loaded.tasks, against_reference(rows, loaded)))
    marked = [line for line in text.splitlines() if BETTER in line]
    assert len(marked) == 1 + 1  # the row and the note
    assert marked[0].count(BETTER) == 3
    assert "MatQuant" in marked[0]
    assert "not corrected for the number of" in text
    assert WORSE not in marked[0]


def test_without_comparisons_nothing_is_marked(made):
    loaded = load(made)
    assert BETTER not in to_text(summary_table(summary(loaded), loaded.tasks))


def test_any_two_read_outs_can_be_compared(made):
    store = ResultStore(made.setup.paths.results)
    _, baseline, matquant = (cell.id for cell in made.cells)
    lines = difference_lines(measured(f"{matquant}:int8", store), measured(f"{baseline}:int2", store))
    assert [line.split()[0] for line in lines] == ["task", "ARC-e", "BoolQ", "Task", "log"]
    assert "+46.0 ± " in lines[2]


@pytest.mark.parametrize("name", ["nothing:int2", "nothing", ":int2"])
def test_a_read_out_that_was_not_measured_is_named_with_those_that_were(made, name):
    with pytest.raises(UserError, match=r"no results of .*; write CELL:PLAN, there are .*:int8"):
        measured(name, ResultStore(made.setup.paths.results))
