"""The summary of a report is computed: it names a winner where documents show one, else that nothing can be told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.frame.contests import contests_at, holm, places
from analysis.frame.significance import paired_test
from analysis.frame.summary import summary
from analysis.page.asked import asked_of, claim_of
from analysis.page.won import ALONE, NOTHING, ONE_RUN, summary_of
from analysis.report.building import load
from evaluation.results.metrics import LOG_PPLX, TASK_AVG
from evaluation.results.store import ResultStore
from tests.made_results import MATQUANT, documents_of, measure, paper_cells, quantized, results_of, study, unquantized

if TYPE_CHECKING:
    from pathlib import Path

    from matquant.config.study import Study


def answers(made: Study, *, shift: dict[int, float], documents: bool = True) -> None:
    """Results of each cell, whose log perplexity is moved by its own shift, a little differently in every block."""
    store = ResultStore(made.setup.paths.results)
    for number, cell in enumerate(made.cells):
        for plan in made.setup.readout.plans_of(cell):
            for result in results_of(cell, plan, made.setup.readout):
                found = documents_of(result)
                if result.task == LOG_PPLX:
                    noise = 0.01 * np.sin(np.arange(result.num_documents) * (number + 1))
                    found[LOG_PPLX] = (np.asarray(found[LOG_PPLX]) + shift.get(number, 0.0) + noise).tolist()
                    metrics = {**result.metrics, LOG_PPLX: float(np.mean(found[LOG_PPLX]))}
                    result = replace(result, metrics=metrics)
                store.put(result, found if documents else {"doc_id": found["doc_id"]})


def said(made: Study) -> tuple[str, str]:
    """The leads, and the sentences width by width."""
    loaded = load(made)
    found = summary_of(summary(loaded), loaded)
    leads = [" ".join(filter(None, (lead.measure, name, text))) for lead in found.leads for name, text in lead.clauses]
    return "\n".join(leads), "\n".join(f"{width.name}: {text}" for width in found.widths for text in width.sentences)


def two(folder: Path) -> Study:
    return study(folder, [quantized(MATQUANT), quantized({"int2": 1.0}, parent_bits=2)], plans=("int2",))


def test_a_winner_is_named_with_its_margin(tmp_path):
    made = two(tmp_path)
    answers(made, shift={0: 0.0, 1: 0.5})
    leads, widths = said(made)
    assert "Log perplexity MatQuant (OmniQuant) is best at int2 (by 0.500 ± 0.001 nats)." in leads
    assert "Task Avg Nothing can be told at int2" in leads
    assert "int2: Log perplexity: best is MatQuant (OmniQuant), 5.719; significantly better than Baseline" in widths
    assert "(100 blocks of text)" in widths


def test_the_winner_follows_the_results(tmp_path):
    made = two(tmp_path)
    answers(made, shift={0: 0.5, 1: 0.0})
    assert "Log perplexity Baseline (OmniQuant) is best at int2" in said(made)[0]


def test_equal_rows_are_not_told_apart(tmp_path):
    made = two(tmp_path)
    measure(made)
    leads, widths = said(made)
    assert "is best" not in leads
    assert "Log perplexity Nothing can be told at int2" in leads
    assert "not told apart from" in widths


def test_rows_without_documents_are_not_tested_and_named(tmp_path):
    made = two(tmp_path)
    answers(made, shift={1: 0.5}, documents=False)
    leads, widths = said(made)
    assert "is best" not in leads
    assert "not tested, for lack of common documents, against Baseline (OmniQuant)" in widths


def test_nothing_measured_one_row_and_the_unquantized_model_are_sentences(tmp_path):
    assert said(two(tmp_path / "none")) == (NOTHING, "")
    for number, cell in enumerate((unquantized(), quantized(MATQUANT))):
        made = study(tmp_path / str(number), [cell])
        measure(made)
        assert said(made) == (ALONE, "")


def test_layouts_of_one_budget_meet_the_uniform_width(tmp_path):
    made = study(tmp_path, [quantized(MATQUANT)], plans=("int4", "pyramid@4", "int2"))
    measure(made)
    loaded = load(made)
    found = {place.name: place for place in places(summary(loaded))}
    assert list(found) == ["4 bits", "int2"]
    names = {found["4 bits"].name_of(index) for index in found["4 bits"].rows.index}
    assert "MatQuant (OmniQuant) at int4" in names
    assert "int2: Nothing to compare: MatQuant (OmniQuant) alone is measured here." in said(made)[1]


def test_a_seed_more_takes_the_caution_about_one_run_away(tmp_path):
    cells = [
        quantized(terms, seed=seed, parent_bits=bits)
        for terms, bits in ((MATQUANT, 8), ({"int2": 1.0}, 2))
        for seed in (0, 1)
    ]
    made = study(tmp_path, cells, plans=("int2",))
    answers(made, shift={2: 0.5, 3: 0.5})
    loaded = load(made)
    assert ONE_RUN not in summary_of(summary(loaded), loaded).note
    assert "MatQuant (OmniQuant) is best" in said(made)[0]


def test_each_of_several_models_has_its_own_answer(tmp_path):
    made = study(
        tmp_path, [quantized(MATQUANT), quantized({"int2": 1.0}, parent_bits=2, name="other")], plans=("int2",)
    )
    measure(made)
    assert said(made)[0] == f"tiny {ALONE}\nother {ALONE}"


def test_a_contest_without_a_difference_is_won_once_in_twenty(tmp_path):
    """Of the best of three equally good rows, over many draws of their documents."""
    generator = np.random.default_rng(0)
    won = 0
    for _ in range(200):
        rows = sorted(generator.normal(size=(3, 40)).tolist(), key=np.mean, reverse=True)
        p_values = holm([paired_test([(rows[0], other)]).p_value for other in rows[1:]])
        won += all(p_value < 0.05 for p_value in p_values)
    assert won / 200 <= 0.05


@given(st.lists(st.floats(0, 1), max_size=6))
def test_corrected_p_values_are_those_of_the_definition(p_values):
    ordered = sorted(p_values)
    expected = {
        p_value: max(
            min(1.0, (len(ordered) - place) * other) for place, other in enumerate(ordered) if other <= p_value
        )
        for p_value in p_values
    }
    assert holm(p_values) == pytest.approx([expected[p_value] for p_value in p_values])
    assert all(corrected >= p_value for corrected, p_value in zip(holm(p_values), p_values, strict=True))


def test_a_contest_holds_every_rival_from_near_to_far(tmp_path):
    made = study(tmp_path, paper_cells()[1:], plans=("int2",))
    answers(made, shift={0: 1.0, 1: 0.2, 2: 0.0})
    loaded = load(made)
    (place,) = [place for place in places(summary(loaded)) if place.name == "int2"]
    contest = {one.measure: one for one in contests_at(place, loaded)}[LOG_PPLX]
    differences = [rival.difference.mean for rival in contest.rivals if rival.difference is not None]
    assert differences == pytest.approx([-0.2, -1.0], abs=0.01)
    assert contest.is_decided
    assert {one.measure for one in contests_at(place, loaded)} == {LOG_PPLX, TASK_AVG}


def test_the_question_is_told_from_the_read_out_and_the_experiments_file(tmp_path):
    made = study(tmp_path, paper_cells())
    asked = dict(asked_of(load(made), made.setup.readout))
    assert asked["read at"] == "int8; int4; int3; int2"
    assert asked["tasks"] == "ARC-e, BoolQ; the first 100 documents of each"
    assert asked["text"] == "log perplexity on 4 blocks of 16 tokens, test text (embedded)"
    assert claim_of(["experiment=demo", "paths.out=x"]).startswith("one OmniQuant MatQuant checkpoint")
    assert claim_of(["bits=int2"]) == claim_of(None) == claim_of(["experiment=nowhere"]) == ""
