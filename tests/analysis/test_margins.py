"""Verdicts by margins: intervals of blocks and seeds, two measures, the number of cases of a claim."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.claims import margins
from analysis.claims.cases import Background
from analysis.claims.evidence import NOT_MEASURED, Finding, MeasuredReadOut, Noise, ReadOut
from analysis.claims.judges import rules_of
from analysis.claims.margins import Asked, Question, Shift, corrected, shift
from analysis.claims.verdicts import BOTH_FAILED, Verdict, rule_text
from evaluation.results.metrics import KL, LOG_PPLX

UNTOLD = "cannot be told at this scale"
FREQUENCIES = 7.5


def read_out(
    *seeds: float, base: str = "omniquant", bits: float = 2.0, cell: str = "a", kl: float | None = None, at: int = 0
) -> MeasuredReadOut:
    """A row with a mean log perplexity for each seed, over 320 blocks that differ as blocks of text do."""
    blocks = np.random.default_rng(at).normal(size=320) * 0.2
    blocks -= blocks.mean()
    found = {
        number: {LOG_PPLX: nats + blocks} | ({} if kl is None else {KL: kl + 0.1 * blocks})
        for number, nats in enumerate(seeds)
    }
    read = ReadOut(base, "MatQuant", "int2")
    return MeasuredReadOut(read, found, bits, cells=frozenset({cell}), unigram=FREQUENCIES)


def judged(rule, ours, theirs) -> Verdict:
    return rule(ours, [theirs]).verdict


numbers = st.floats(-1, 1).map(lambda value: round(value, 3))
shifts = st.builds(Shift, numbers, st.floats(0.001, 0.5), st.floats(2, 400))


@settings(deadline=None)  # the first example imports scipy
@given(shifts, st.sampled_from([0.05, 0.1]))
def test_a_verdict_is_where_the_interval_lies(one, margin):
    low, high = one.interval
    better = Question("better", {LOG_PPLX: one}, margin).verdict().word
    as_good = Question("as good", {LOG_PPLX: one}, margin).verdict().word
    within = low > -margin and high < margin
    assert better == ("holds" if high < 0 else "does not hold" if low > 0 or within else UNTOLD)
    assert as_good == ("holds" if high < margin else "does not hold" if low > margin else UNTOLD)


@settings(deadline=None)
@given(st.lists(shifts, min_size=1, max_size=6))
def test_verdicts_are_corrected_by_holms_rule(several):
    found = [Asked("", Verdict("holds"), question=Question("better", {LOG_PPLX: one}, 0.1)) for one in several]
    p_values = [one.question.p_value for one in found]
    for one, after in zip(found, corrected(found), strict=True):
        assert (after.verdict.word != UNTOLD) == (_adjusted(one.question.p_value, p_values) <= 0.05)


def _adjusted(p_value: float, p_values: list[float]) -> float:
    """Holm's adjusted p-value as textbooks have it: the largest multiple of those that are as small."""
    ordered = sorted(p_values)
    return max((len(ordered) - place) * ordered[place] for place in range(ordered.index(p_value) + 1))


def test_a_finding_without_a_question_is_not_corrected_and_does_not_count():
    sure = Question("better", {LOG_PPLX: Shift(-1, 0.35, 300)}, 0.1)
    assert sure.p_value < 0.05 < 20 * sure.p_value
    others = [Finding("", Verdict("holds")), NOT_MEASURED] * 5
    assert corrected([Asked("", Verdict("holds"), question=sure), *others])[0].verdict.word == "holds"
    many = [Asked("", Verdict("holds"), question=sure) for _ in range(20)]
    assert {str(one.verdict) for one in corrected(many)} == {f"{UNTOLD} (holds by itself, but not among so many cases)"}


def test_blocks_are_paired_and_seeds_are_not():
    ours, theirs = read_out(5.0, 5.1, 5.2, cell="a"), read_out(5.3, 5.5, 5.4, cell="b")
    found = shift(ours, theirs, LOG_PPLX)
    assert found.mean == pytest.approx(-0.3)
    assert found.stderr == pytest.approx(math.sqrt(2 * 0.1**2 / 3))
    assert found.freedom == pytest.approx(4)
    other_text = shift(ours, read_out(5.3, 5.5, 5.4, cell="b", at=1), LOG_PPLX)
    assert other_text.stderr > found.stderr


def test_two_read_outs_of_one_checkpoint_do_not_differ_by_training():
    ours = read_out(5.0, 5.1, 5.2)
    found = shift(
        ours, replace(ours, seeds={seed: {LOG_PPLX: of[LOG_PPLX] + 0.3} for seed, of in ours.seeds.items()}), LOG_PPLX
    )
    assert found.stderr == pytest.approx(0, abs=1e-9)


def test_a_row_without_training_has_no_spread_of_seeds():
    found = shift(read_out(5.0, cell="a"), read_out(5.3, 5.5, 5.4, cell="b"), LOG_PPLX)
    assert found.stderr == pytest.approx(math.sqrt(0.1**2 / 3))
    assert found.freedom == pytest.approx(2)


def test_the_pooled_spread_of_seeds_counts_where_it_is_known():
    noise = Noise(0, 0.2, 8, nats={LOG_PPLX: 0.2})
    ours, theirs = (replace(read_out(5.0, 5.1, 5.2, cell=cell), noise=noise) for cell in "ab")
    found = shift(ours, theirs, LOG_PPLX)
    assert found.stderr == pytest.approx(math.sqrt(2 * 0.2**2 / 3))
    assert found.freedom == pytest.approx(8), "one estimate, which both rows share"
    other = replace(theirs, noise=replace(noise, nats={LOG_PPLX: 0.1}))
    assert shift(ours, other, LOG_PPLX).stderr == pytest.approx(math.sqrt((0.2**2 + 0.1**2) / 3))


def test_the_margin_is_wider_below_four_bits():
    worse = [5.07, 5.07, 5.07]
    for bits, word in ((2.08, "holds"), (3.0, "holds"), (3.6, "does not hold"), (4.0, "does not hold")):
        ours, theirs = read_out(*worse, bits=bits, cell="a"), read_out(5.0, 5.0, 5.0, cell="b")
        assert judged(margins.as_good, ours, theirs).word == word


def test_what_learns_from_text_has_to_be_better_in_divergence_too():
    ours, theirs = read_out(5, base="qat", kl=0.5, cell="a"), read_out(6, base="qat", kl=0.5, cell="b")
    found = judged(margins.better, ours, theirs)
    assert str(found) == f"{UNTOLD} (log perplexity: holds; divergence: does not hold)"
    assert judged(margins.better, ours, replace(theirs, seeds=read_out(6, kl=0.9).seeds)).word == "holds"
    assert margins.better(read_out(5, base="qat"), [theirs]) == NOT_MEASURED


def test_of_two_models_that_have_failed_neither_is_better():
    assert judged(margins.better, read_out(8, cell="a"), read_out(9, cell="b")) == BOTH_FAILED
    assert judged(margins.better, read_out(7, cell="a"), read_out(9, cell="b")).word == "holds"


@pytest.mark.parametrize(("nats", "fails", "does_not"), [(9, "holds", "does not hold"), (5, "does not hold", "holds")])
def test_a_model_fails_above_token_frequencies(nats, fails, does_not):
    assert margins.fails(read_out(nats), ()).verdict.word == fails
    assert margins.does_not_fail(read_out(nats), ()).verdict.word == does_not
    assert margins.fails(read_out(FREQUENCIES), ()).verdict.word == UNTOLD


def test_every_model_has_its_own_token_frequencies():
    several = Background({}, {"one": 7.0, "other": 8.0})
    assert [several.unigram_of(ReadOut("", "", "", {"model": name})) for name in ("one", "other", "none")] == [
        7,
        8,
        None,
    ]
    assert Background({}, 7.5).unigram_of(ReadOut("", "", "")) == 7.5


def test_a_document_prints_the_rules_that_its_cases_use():
    rules = rules_of([margins.better, margins.fails])
    assert list(rules) == ["Better", "Fails"]
    text = rule_text(margins.fails, unigram={"one": 7.0, "other": 8.0})
    assert "above 7.00 or 8.00 nats, which token frequencies" in text
