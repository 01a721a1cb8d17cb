"""Paired tests: exact where they can be, close to theory where they are drawn, and silent about equals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_ind, ttest_rel

from analysis.frame.load import load_frame
from analysis.frame.significance import (
    FEWEST,
    against_reference,
    differences,
    document_values,
    guess_test,
    mcnemar,
    paired_test,
    quantile,
)
from analysis.frame.summary import summary
from analysis.report.compare import difference_lines, measured
from analysis.tables.drawing import to_text
from analysis.tables.summary_table import summary_table
from analysis.tables.typeset import BETTER, WORSE
from evaluation.results.metrics import TASK_AVG
from evaluation.results.store import ResultStore
from matquant.errors import UserError
from reference.paired_reference import guess_p_value, sign_flip_p_value
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


STRATA = st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=4), min_size=1, max_size=3)


def against_zero(strata):
    return [(differences, [0] * len(differences)) for differences in strata]


@given(STRATA)
@settings(deadline=None, max_examples=60)
def test_sign_flips_are_those_of_a_count_of_all_of_them(strata):
    found = paired_test(against_zero(strata))
    assert found.p_value == pytest.approx(sign_flip_p_value(strata))
    assert found.mean == pytest.approx(np.mean([np.mean(differences) for differences in strata]))


@pytest.mark.parametrize(("num", "p_value"), [(2, 0.5), (4, 0.125), (5, 0.0625), (6, 0.03125), (12, 2 / 2**12)])
def test_few_blocks_show_no_more_than_their_number_can(num, p_value):
    """A bootstrap gave p = 0.0002 for four blocks that agree."""
    found = paired_test([([1.0 + 0.01 * block for block in range(num)], [0.0] * num)])
    assert found.p_value == p_value
    assert found.significant == (num >= FEWEST)
    assert ("cannot show a difference" in found.test) == (num < FEWEST)


def test_many_blocks_are_compared_by_students_t():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(3.0, 1.0, 40), rng.normal(3.3, 1.0, 40)
    found = paired_test([(ours, theirs)])
    expected = ttest_rel(ours, theirs)
    assert (found.test, found.freedom) == ("paired t", pytest.approx(39))
    assert found.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert quantile(found.freedom) * found.stderr == pytest.approx((high - low) / 2)


def test_several_tasks_have_the_degrees_of_freedom_of_welch():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.2, 1.0, 30), rng.normal(0.2, 3.0, 12)
    found = paired_test([(first, np.zeros(30)), (np.zeros(12), second)])
    expected = ttest_ind(first, second, equal_var=False)  # the sum of two means with one of them turned around
    assert (found.p_value, found.freedom) == (pytest.approx(expected.pvalue), pytest.approx(expected.df))


def test_the_quantile_of_few_seeds_is_wide():
    assert quantile(2) * math.sqrt(2) == pytest.approx(6.08, abs=0.01)
    assert quantile(math.inf) == pytest.approx(1.96, abs=0.001)


def test_answers_that_all_agree_are_no_certainty():
    for found in (mcnemar([0] * 20, [0] * 20), paired_test([([1.0] * 20, [1.0] * 20)])):
        assert (found.mean, found.p_value) == (0.0, 1.0)
        assert found.stderr == pytest.approx(math.sqrt(2) / 22)
    nats = [3.1, 3.2, 3.3]
    assert paired_test([(nats, nats)]).stderr == 0  # one model read twice


def test_one_document_a_task_shows_nothing():
    found = paired_test([([1.0], [0.0])] * 30)
    assert (found.p_value, found.test) == (1.0, "none: a task has one document")
    assert math.isnan(found.stderr)


ANSWERS = st.lists(st.integers(0, 1), min_size=3, max_size=3)


@given(st.lists(ANSWERS, min_size=1, max_size=3))
@settings(deadline=None, max_examples=15)
def test_guesses_are_those_of_a_count_of_all_of_them(answers):
    chances = [Fraction(1, 4), Fraction(1, 2), Fraction(1, 4)][: len(answers)]
    found = guess_test([(values, float(chance)) for values, chance in zip(answers, chances, strict=True)])
    assert found.p_value == pytest.approx(guess_p_value(list(zip(answers, chances, strict=True))))


def test_guesses_at_different_numbers_of_documents_are_close_to_the_exact_test():
    values = [1.0] * 40 + [0.0] * 60
    exact = guess_test([(values, 0.25)]).p_value
    assert exact == pytest.approx(binomtest(40, 100, 0.25).pvalue, rel=0.3)
    assert guess_test([(values, 0.25), ([1.0, 0.0] * 2, 0.5)]).p_value == pytest.approx(0.55, abs=0.1)


def test_pairing_finds_a_small_difference_in_large_noise():
    rng = np.random.default_rng(0)
    theirs = rng.normal(3.0, 5.0, 50)
    found = paired_test([(theirs - 0.05 + rng.normal(0, 0.05, 50), theirs)])
    assert found.significant
    assert found.mean < 0


@pytest.mark.parametrize("documents", [{}, {"doc_id": [0, 1]}, {"doc_id": [0, 1], "em": [0.5, None]}])
def test_a_task_without_a_number_for_each_document_is_not_compared(documents):
    assert document_values(documents, "em") is None


def test_strata_weigh_alike_whatever_their_size():
    small, large = ([1.0] * 4, [0.0] * 4), ([0.0] * 400, [0.0] * 400)
    found = paired_test([small, large])
    assert found.mean == 0.5
    assert found.num_documents == 404
    assert found.p_value == 0.125  # four documents differ


def test_what_is_equal_is_never_significant():
    values = [0.0, 1.0, 1.0, 0.0]
    assert mcnemar(values, values).p_value == 1
    assert paired_test([(values, values)]).p_value == 1


@pytest.mark.parametrize("num", [3, 9])
def test_tasks_that_cancel_out_are_a_tie(num):
    differences = ([0.1] * num, [0.2] * num, [-0.3] * num)  # their sum is 5.6e-17
    found = paired_test([(values, [0.0] * num) for values in differences])
    assert found.p_value == 1


@pytest.mark.parametrize("num", [4, 8, 12, 60])
def test_false_alarms_are_as_rare_as_the_level_says(num):
    rng = np.random.default_rng(1)
    alarms = sum(paired_test([(rng.normal(size=num), rng.normal(size=num))]).significant for _ in range(200))
    assert alarms <= 20  # 10 expected
    assert (alarms == 0) == (num == 4)


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


def test_of_two_protocols_each_is_compared_with_itself(made):
    readout = made.setup.readout.model_copy(update={"limit": 50})
    measure(dataclasses.replace(made, setup=made.setup.model_copy(update={"readout": readout})), accuracy=0.3)
    store = ResultStore(made.setup.paths.results)
    _, baseline, matquant = (cell.id for cell in made.cells)
    lines = difference_lines(measured(f"{matquant}:int2", store), measured(f"{baseline}:int2", store))
    blocks = "\n".join(lines).split("measured with ")
    assert sorted(block.split(":")[0] for block in blocks[1:]) == ["limit 100", "limit 50"]
    of_100 = next(block for block in blocks if block.startswith("limit 100"))
    assert "+40.0 ± " in of_100
    assert all(block.count("Task Avg") == 1 for block in blocks[1:])


def test_tasks_of_different_limits_have_no_average_in_common(made):
    _, baseline, matquant = (cell.id for cell in made.cells)
    alone = made.setup.readout.model_copy(update={"tasks": ("boolq",), "limit": 50})
    measure(dataclasses.replace(made, setup=made.setup.model_copy(update={"readout": alone})), accuracy=0.3)
    store = ResultStore(made.setup.paths.results)
    for path in [*store.paths(baseline), *store.paths(matquant)]:
        result = store.read(path)
        if result.task == "boolq" and result.protocol["limit"] == 100:
            path.unlink()
    lines = difference_lines(measured(f"{matquant}:int2", store), measured(f"{baseline}:int2", store))
    blocks = "\n".join(lines).split("measured with ")
    assert sorted(block.split(":")[0] for block in blocks[1:]) == ["limit 100", "limit 50"]
    assert all(("BoolQ" in block) == block.startswith("limit 50") for block in blocks[1:])


@pytest.mark.parametrize("name", ["nothing:int2", "nothing", ":int2"])
def test_a_read_out_that_was_not_measured_is_named_with_those_that_were(made, name):
    with pytest.raises(UserError, match=r"no results of .*; write CELL:PLAN, there are .*:int8"):
        measured(name, ResultStore(made.setup.paths.results))


def test_text_of_other_tokens_is_not_compared_and_tasks_are(made, tmp_path):
    other = study(tmp_path, [unquantized(name="other")])
    store = measure(other)
    (cell,) = other.cells
    for one in (made.cells[0], cell):
        (store.folder / one.id / "cell.json").write_text(one.model_dump_json(), encoding="utf-8")
    lines = difference_lines(measured(f"{made.cells[0].id}:full", store), measured(f"{cell.id}:full", store))
    assert [line.split()[0] for line in lines[1:-1]] == ["ARC-e", "BoolQ", "Task"]
    assert lines[-1].startswith("log pplx is not compared: the two models cut the text into other tokens")
