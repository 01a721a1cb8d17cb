"""Perplexity, divergence and flips in tables, comparisons, figures and trackers: gaps where they were not measured."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.figures.gallery import plots
from analysis.figures.pareto import panel_of, pareto_figure
from analysis.frame.axes import SHOWN, USUAL_AXES, require_known
from analysis.frame.load import LoadedResults, load_frame
from analysis.frame.measures import with_flips
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from analysis.report.compare import difference_lines, measured
from analysis.report.files import csv_of
from analysis.tables.drawing import to_text
from analysis.tables.summary_table import REFERENCE, summary_table
from analysis.tables.typeset import MISSING
from evaluation.protocol import protocols
from evaluation.results.flips import flips_of
from evaluation.results.metrics import BASE_LOG_PPLX, KL, KL_99, KL_MEDIAN, LOG_PPLX, MEASURES, RMS_DP, SAME_TOP
from evaluation.results.readouts import readout_flips, readout_point, readout_rows
from evaluation.results.store import ResultStore
from matquant.errors import UserError
from reference.divergence_reference import flips as slow_flips
from tests.made_results import MATQUANT, documents_of, measure, paper_cells, quantized, study, unquantized

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


def diverge(made, *, only: set[str] | None = None, teacher: float = 3.0 + math.exp(3 - 16)) -> ResultStore:
    """Adds a divergence to results of quantized cells, as a run stores it."""
    store = ResultStore(made.setup.paths.results)
    for cell in made.cells:
        if cell.base.kind == "none" or (only is not None and cell.id not in only):
            continue
        for result in list(store.results(cell.id)):
            if result.task != LOG_PPLX:
                continue
            kl = 2.0 ** (1 - BITS[result.plan]) * (1 + 0.1 * cell.seed)
            metrics = {**dict.fromkeys(MEASURES, kl), SAME_TOP: 1 - kl / 4, RMS_DP: kl / 4, BASE_LOG_PPLX: teacher}
            metrics |= {f"{KL}_stderr": kl / 10, f"{SAME_TOP}_stderr": 0.01}
            columns = {name: [metrics[name] + 0.001 * (i % 2) for i in range(100)] for name in MEASURES}
            store.put(replace(result, metrics={**result.metrics, **metrics}), {**documents_of(result), **columns})
    return store


def load(made) -> LoadedResults:
    return load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results))


def text_of(loaded: LoadedResults) -> str:
    rows = with_flips(summary(loaded), loaded)
    return to_text(summary_table(rows, loaded.tasks, against_reference(rows, loaded), loaded.metrics))


@pytest.fixture
def made(tmp_path):
    made = study(tmp_path, paper_cells())
    measure(made)
    return made


def test_results_of_earlier_versions_show_no_divergence_and_have_their_perplexity(made):
    loaded = load(made)
    rows = summary(loaded)
    assert rows[list(MEASURES)].isna().all(axis=None)
    np.testing.assert_allclose(rows["perplexity"], np.exp(rows[LOG_PPLX]))
    np.testing.assert_allclose(rows["perplexity_stderr"], rows["perplexity"] * 0.02)
    text = text_of(loaded)
    assert "KL" not in text
    assert MISSING not in text
    assert not loaded.problems


def test_a_row_without_a_divergence_is_a_gap_beside_rows_that_have_one(made):
    diverge(made, only={made.cells[3].id})
    loaded = load(made)
    rows = summary(loaded)
    has = rows["cell_id"] == made.cells[3].id
    assert rows.loc[has, KL].notna().all()
    assert rows.loc[~has, KL].isna().all()
    lines = text_of(loaded).splitlines()
    baseline = next(line for line in lines if "Baseline (OmniQuant)" in line)
    assert baseline.split().count(MISSING) >= 2
    assert next(line for line in lines if "unquantized" in line).split().count(REFERENCE) == 3
    assert "0.500 ± 0.050" in text_of(loaded)
    assert "87.5 ± 1.0" in text_of(loaded)


def test_every_measure_is_in_the_csv(made):
    diverge(made)
    loaded = load(made)
    head = csv_of(with_flips(summary(loaded), loaded)).splitlines()[0].split(",")
    wanted = {*MEASURES, f"{KL}_stderr", f"{KL}_spread", "perplexity", "right_to_wrong", "wrong_to_right"}
    assert wanted | {"arc_easy_right_to_wrong", "boolq_wrong_to_right"} <= set(head)


def test_seeds_are_averaged_only_where_each_has_a_divergence(tmp_path):
    made = study(tmp_path, [quantized(MATQUANT, seed=seed) for seed in (0, 1)], plans=["int2"])
    measure(made)
    diverge(made, only={made.cells[0].id})
    (row,) = summary(load(made)).to_dict("records")
    assert row["num_seeds"] == 2
    assert math.isnan(row[KL])
    assert row[LOG_PPLX] > 0
    diverge(made)
    (row,) = summary(load(made)).to_dict("records")
    assert row[KL] == pytest.approx(0.5 * 1.05)
    assert row[f"{KL}_spread"] == pytest.approx(0.05 / math.sqrt(2))


def test_measures_are_compared_in_pairs_of_blocks(made, tmp_path):
    store = diverge(made)
    loaded = load(made)
    rows = summary(loaded)
    found = against_reference(rows, loaded)
    assert {KL, SAME_TOP} <= set(found["task"])
    assert not {KL_MEDIAN, KL_99, RMS_DP} & set(found["task"]), "a mean of blocks' percentiles is another number"
    assert not found.loc[found["task"] == KL, "higher_is_better"].any()
    assert found.loc[found["task"] == SAME_TOP, "higher_is_better"].all()
    first, second = (measured(f"{made.cells[3].id}:{plan}", store) for plan in ("int4", "int2"))
    lines = difference_lines(first, second)
    (line,) = [line for line in lines if line.startswith("kl ")]
    assert line.split()[1:4] == ["0.12550", "0.50050", "-0.37500"]
    (line,) = [line for line in lines if line.startswith("BoolQ")]
    assert line.endswith(", right: 2 the first alone, 0 the second alone")
    (average,) = [line for line in lines if line.startswith("Task Avg")]
    assert float(average.split()[2]) == pytest.approx(100 * 0.54)


def test_the_divergence_from_another_model_is_a_sentence_and_no_number(made):
    diverge(made, teacher=3.5)
    loaded = load(made)
    rows = summary(loaded)
    assert rows[KL].isna().all()
    assert rows[LOG_PPLX].notna().all()
    (problem,) = loaded.problems
    assert "is from a model of 3.5000 nats a token, and the unquantized row is another one" in problem
    assert KL not in set(against_reference(rows, loaded)["task"])


# --- flips -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1))
@settings(deadline=None)
def test_flips_are_those_of_a_plain_loop_and_make_up_the_difference_of_accuracies(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = flips_of(ours, theirs)
    assert found is not None
    assert found[:2] == slow_flips(ours, theirs)
    assert found.wrong_to_right - found.right_to_wrong == sum(ours) - sum(theirs)


def test_answers_that_are_graded_or_of_other_documents_have_no_flips():
    assert flips_of([0.5, 1], [1, 1]) is None
    assert flips_of([1], [1, 1]) is None
    assert flips_of([None, 1], [1, 1]) is None
    assert flips_of([], []) is None


def test_task_avg_is_that_of_the_unquantized_model_with_its_flips(made):
    loaded = load(made)
    rows = with_flips(summary(loaded), loaded)
    full, reads = rows[rows["base"] == "none"].iloc[0], rows[rows["base"] != "none"]
    change = reads["wrong_to_right"] - reads["right_to_wrong"]
    np.testing.assert_allclose(reads["task_avg"], full["task_avg"] + change, atol=1e-9)
    assert math.isnan(full["right_to_wrong"])
    assert " lost, 0.0 won" in text_of(loaded)


@pytest.mark.parametrize("reason", ["other weights", "another protocol", "not measured"])
def test_flips_are_a_gap_where_the_unquantized_model_was_not_measured_alike(made, reason):
    store = ResultStore(made.setup.paths.results)
    for result in list(store.results(made.cells[0].id)):
        store.path(result.key).unlink()
        other = replace(result, sources={"model": "sha256:other"})
        if reason == "another protocol":
            other = replace(result, protocol={**result.protocol, "lm_eval": "0.4.0"})
        if reason != "not measured":
            store.put(other, documents_of(other))
    if reason == "other weights":
        for cell in made.cells[1:]:
            for result in list(store.results(cell.id)):
                store.put(replace(result, sources={"model": "sha256:mine"}), documents_of(result))
    loaded = load(made)
    rows = with_flips(summary(loaded), loaded)
    assert rows["right_to_wrong"].isna().all()
    assert "Flips" not in text_of(loaded)


def test_a_tracker_is_told_every_measure_under_its_name(tmp_path):
    made = study(tmp_path, [unquantized(), quantized(MATQUANT)])
    measure(made)
    store, cell = diverge(made), made.cells[1]
    wanted = protocols(made.setup.readout, add_bos=False)
    point = readout_point(readout_rows(store, cell.id, wanted), "int2")
    assert point["readout/kl"] == pytest.approx(0.5)
    assert point["readout/same_top_p"] == pytest.approx(87.5)
    assert point["readout/rms_dp"] == pytest.approx(12.5)
    assert point["readout/perplexity"] == pytest.approx(math.exp(point["readout/log_pplx"]))
    assert point["readout/task_avg"] == pytest.approx(100 * 0.52)
    flips = readout_flips(store, cell, wanted, "int2")
    assert flips == {"right_to_wrong": pytest.approx(14), "wrong_to_right": 0}
    assert readout_flips(store, made.cells[0], wanted, "full") == {}


# --- figures ---------------------------------------------------------------------------------------------------------


def test_any_measure_can_be_on_the_axis_of_a_pareto_plot(made):
    diverge(made)
    loaded = load(made)
    rows = with_flips(summary(loaded), loaded)
    assert "pareto_divergence" in [plot.name for plot in plots(made, loaded, rows)]
    assert "pareto_divergence" not in [plot.name for plot in plots(made, loaded, rows, [KL])]
    names = [name for name in SHOWN if name not in USUAL_AXES]
    figure = pareto_figure(rows, loaded.tasks, panels=[panel_of(name) for name in names])
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles[1] == "KL divergence (nats per token), lower is better"
    assert len(titles) == len(names)
    assert panel_of("wrong_to_right").sign == panel_of(SAME_TOP).sign == 1
    assert panel_of("right_to_wrong").sign == panel_of(RMS_DP).sign == panel_of("perplexity").sign == -1


def test_a_measure_that_there_is_not_is_refused_with_those_there_are():
    assert require_known(["kl", "same_top_p", "kl"]) == (KL, SAME_TOP)
    assert require_known([""]) == USUAL_AXES
    with pytest.raises(UserError, match="--pareto bleu is no measure; choose among task_avg, log_pplx, perplexity, kl"):
        require_known(["bleu"])
