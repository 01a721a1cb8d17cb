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
from analysis.claims.evidence import NOT_MEASURED, Finding, MeasuredReadOut, Noise, Pooled, ReadOut, noise_of
from analysis.claims.judges import rules_of
from analysis.claims.margins import on_the_line, shift
from analysis.claims.questions import Asked, Shift, corrected, is_as_good, is_better
from analysis.claims.verdicts import BOTH_FAILED, Verdict, rule_text
from analysis.frame.code_counts import Codes
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
    better, as_good = (ask({LOG_PPLX: one}, margin).verdict().word for ask in (is_better, is_as_good))
    within = low > -margin and high < margin
    assert better == ("holds" if high < 0 else "does not hold" if low > 0 or within else UNTOLD)
    assert as_good == ("holds" if high < margin else "does not hold" if low > margin else UNTOLD)


def asked(one: Shift, margin: float = 0.1) -> Asked:
    question = is_better({LOG_PPLX: one}, margin)
    return Asked("", question.verdict(), question=question)


@settings(deadline=None)
@given(st.lists(shifts, min_size=1, max_size=6), st.integers(0, 5))
def test_verdicts_are_corrected_by_holms_rule_over_all_cases_of_a_claim(several, missing):
    found = [asked(one) for one in several]
    p_values = [one.question.p_value for one in found] + [1.0] * missing
    after = corrected([*found, *[NOT_MEASURED] * missing])
    assert after[len(found) :] == [NOT_MEASURED] * missing
    for one, now in zip(found, after, strict=False):
        kept = one.verdict.word == UNTOLD or _adjusted(one.question.p_value, p_values) <= 0.05
        assert now.verdict == one.verdict if kept else now.verdict.word == UNTOLD, "no answer becomes another one"


def _adjusted(p_value: float, p_values: list[float]) -> float:
    """Holm's adjusted p-value as textbooks have it: the largest multiple of those that are as small."""
    ordered = sorted(p_values)
    return max((len(ordered) - place) * ordered[place] for place in range(ordered.index(p_value) + 1))


def test_an_interval_below_zero_and_within_the_margin_is_better_or_cannot_be_told():
    little = Shift(-0.020, 0.008, 319)
    assert asked(little, 0.05).verdict == Verdict("holds")
    among = corrected([asked(little, 0.05), *[NOT_MEASURED] * 11])[0].verdict
    assert str(among) == f"{UNTOLD} (holds by itself, but not among so many cases)"


def test_what_is_not_measured_or_has_failed_counts_among_the_cases():
    sure = asked(Shift(-1, 0.35, 300))
    assert sure.question.p_value < 0.05 < 20 * sure.question.p_value
    alone, several = corrected([sure])[0], corrected([sure, *[Finding("", BOTH_FAILED), NOT_MEASURED] * 10])[0]
    assert alone.verdict.word == "holds"
    assert str(several.verdict) == f"{UNTOLD} (holds by itself, but not among so many cases)"


def test_blocks_are_paired_and_seeds_are_not():
    ours, theirs = read_out(5.0, 5.1, 5.2, cell="a"), read_out(5.3, 5.5, 5.4, cell="b")
    found = shift(ours, theirs, LOG_PPLX)
    assert found.mean == pytest.approx(-0.3)
    assert found.stderr == pytest.approx(math.sqrt(2 * 0.1**2 / 3))
    assert found.freedom == pytest.approx(4)
    other_text = shift(ours, read_out(5.3, 5.5, 5.4, cell="b", at=1), LOG_PPLX)
    assert other_text.stderr > found.stderr


def test_of_one_block_nothing_can_be_told():
    ours, theirs = (replace(read_out(nats, cell=cell), seeds=of_one_block(nats)) for nats, cell in ((4, "a"), (5, "b")))
    for rule in (margins.better, margins.as_good):
        found = rule(ours, [theirs])
        assert found.verdict.word == UNTOLD
        assert math.isinf(found.question.shifts[LOG_PPLX].stderr)


def of_one_block(nats: float) -> dict[int, dict[str, np.ndarray]]:
    return {0: {LOG_PPLX: np.array([float(nats)])}}


def test_two_read_outs_of_one_checkpoint_are_paired_by_seed():
    ours = read_out(5.0, 5.1, 5.2)
    apart = [0.5, -0.2, -0.1]
    seeds = {seed: {LOG_PPLX: of[LOG_PPLX] + apart[seed]} for seed, of in ours.seeds.items()}
    found = shift(ours, replace(ours, seeds=seeds), LOG_PPLX)
    assert found.mean == pytest.approx(-np.mean(apart))
    assert found.stderr == pytest.approx(np.std(apart, ddof=1) / math.sqrt(3))
    assert found.freedom == pytest.approx(2)
    once = read_out(5.0)
    same = shift(once, replace(once, seeds={0: {LOG_PPLX: once.seeds[0][LOG_PPLX] + 0.3}}), LOG_PPLX)
    assert same.stderr == pytest.approx(0, abs=1e-9), "of one seed, only blocks differ"


def test_a_row_without_training_has_no_spread_of_seeds():
    found = shift(read_out(5.0, cell="a"), read_out(5.3, 5.5, 5.4, cell="b"), LOG_PPLX)
    assert found.stderr == pytest.approx(math.sqrt(0.1**2 / 3))
    assert found.freedom == pytest.approx(2)


def test_the_pooled_spread_of_seeds_counts_where_it_is_known():
    noise = Noise(0, 0.2, 8, nats={LOG_PPLX: Pooled(0.2, 8)})
    ours, theirs = (replace(read_out(5.0, 5.1, 5.2, cell=cell), noise=noise) for cell in "ab")
    found = shift(ours, theirs, LOG_PPLX)
    assert found.stderr == pytest.approx(math.sqrt(2 * 0.2**2 / 3))
    assert found.freedom == pytest.approx(8), "one estimate, which both rows share"
    other = replace(theirs, noise=replace(noise, nats={LOG_PPLX: Pooled(0.1, 8)}))
    assert shift(ours, other, LOG_PPLX).stderr == pytest.approx(math.sqrt((0.2**2 + 0.1**2) / 3))


def test_a_trained_row_of_one_seed_has_the_spread_of_rows_like_it():
    noise = Noise(0, 0.2, 8, nats={LOG_PPLX: Pooled(0.2, 8)})
    once = replace(read_out(5.0, cell="a"), noise=noise)
    assert shift(once, read_out(5.2, cell="b"), LOG_PPLX).stderr == pytest.approx(0.2)


def test_divergence_is_pooled_over_the_rows_that_have_it():
    noise = noise_of([read_out(5.0, 5.2, kl=0.5), read_out(5.0, 5.4)])
    assert noise is not None
    assert {name: pooled.freedom for name, pooled in noise.nats.items()} == {LOG_PPLX: 2, KL: 1}
    without = noise_of([read_out(5.0, 5.4)])
    assert without is not None
    assert list(without.nats) == [LOG_PPLX]


def test_a_rival_at_equal_stored_bits_lies_on_the_line_of_two_rows():
    low, high = (
        replace(read_out(*nats, cell=cell), stored_bits=bits)
        for nats, cell, bits in (((6.0, 6.2), "a", 8.0), ((5.0, 5.2), "b", 9.0))
    )
    for bits, nats in ((8.25, 5.85), (7.0, 6.1), (9.5, 5.1)):
        for ends in ((low, high), (high, low)):
            assert on_the_line(ends, bits).log_pplx == pytest.approx(nats)
    ours = replace(read_out(5.7, 5.7, cell="c"), stored_bits=8.25)
    assert judged_by_two(margins.better_at_its_size, ours, low, high).word == UNTOLD
    assert judged_by_two(margins.better_at_its_size, read_at(4.5, 8.25), low, high).word == "holds"
    assert judged_by_two(margins.better_at_its_size, read_at(7.3, 8.25), low, high).word == "does not hold"


def read_at(nats: float, bits: float) -> MeasuredReadOut:
    return replace(read_out(nats, nats, cell="c"), stored_bits=bits)


def judged_by_two(rule, ours, *theirs) -> Verdict:
    return rule(ours, theirs).verdict


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
    assert str(judged(margins.better, read_out(5, base="qat"), theirs)) == "not measured yet (divergence)"


def test_of_two_models_that_have_failed_neither_is_better():
    assert judged(margins.better, read_out(8, cell="a"), read_out(9, cell="b")) == BOTH_FAILED
    assert judged(margins.better, read_out(7, cell="a"), read_out(9, cell="b")).word == "holds"


@pytest.mark.parametrize(("nats", "fails", "does_not"), [(9, "holds", "does not hold"), (5, "does not hold", "holds")])
def test_a_model_fails_above_token_frequencies(nats, fails, does_not):
    assert margins.fails(read_out(nats), ()).verdict.word == fails
    assert margins.does_not_fail(read_out(nats), ()).verdict.word == does_not
    assert margins.fails(read_out(FREQUENCIES), ()).verdict.word == UNTOLD


def test_a_model_trains_where_its_baseline_fails_if_seeds_do_not_change_that():
    alike, apart, fails = read_out(6.4, 6.5, 6.6), read_out(6.4, 7.4, 8.6), read_out(8.9, 9.0, 9.1, cell="b")
    rule = margins.trains_where_the_baseline_fails
    assert judged(rule, alike, fails) == Verdict("holds")
    assert judged(rule, apart, fails).word == UNTOLD
    assert str(judged(rule, fails, alike)) == "does not hold (it fails)"
    assert str(judged(rule, alike, read_out(5.9, 6.0, 6.1, cell="b"))) == "does not hold (the baseline trains)"


def with_shares(*shares: float, cell: str) -> MeasuredReadOut:
    """A row with a share of weights in the highest bucket of int2 for each seed."""
    codes = {}
    for seed, share in enumerate(shares):
        counts = np.zeros(256, dtype=int)
        counts[0], counts[-1] = round(10000 * (1 - share)), round(10000 * share)
        codes[seed] = Codes(counts, {})
    return replace(read_out(*[5.0] * len(shares), cell=cell), codes=codes)


def test_the_share_of_the_highest_bucket_has_to_grow_by_more_than_seeds_differ_by():
    rule = margins.highest_bucket_grows
    base = with_shares(0.050, 0.051, 0.052, cell="b")
    assert judged(rule, with_shares(0.070, 0.071, 0.072, cell="a"), base) == Verdict("holds")
    assert str(judged(rule, with_shares(0.020, 0.021, 0.022, cell="a"), base)) == "does not hold (the share falls)"
    wide = with_shares(0.040, 0.056, 0.062, cell="a")
    assert str(judged(rule, wide, base)) == "does not hold (no more than seeds differ by)"
    assert rule(replace(base, codes={}), [base]) == NOT_MEASURED


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
    assert "above 7.00 or 8.00 nats" in rule_text(margins.better, unigram={"one": 7.0, "other": 8.0})
    text = rule_text(margins.fails, unigram={"one": 7.0, "other": 8.0})
    assert "above 7.00 or 8.00 nats, which token frequencies" in text
