"""Margins: the rules of claims that differences in nats decide, with the spread of seeds.

A study whose claims are about text alone uses these rules instead of those of `verdicts`: one measure decides (two,
where training goes on learning from text like the test text), and what is too small to matter is said in nats
beforehand.  The standard error of a difference has two parts, added as squares: that of the paired mean over blocks,
and the spread of seeds over the root of their number, for each row that is trained.  Verdicts are those of `questions`,
which are corrected for the number of cases of a claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from analysis.claims.evidence import (
    NOT_MEASURED,
    Finding,
    Judge,
    MeasuredReadOut,
    ReadOut,
    places,
    signed,
)
from analysis.claims.questions import (
    NAMES,
    Asked,
    Question,
    Shift,
    is_as_good,
    is_below_zero,
    is_better,
    rises,
    trains_alone,
)
from analysis.claims.verdicts import BOTH_FAILED, Verdict
from evaluation.results.metrics import KL, LOG_PPLX

ON_TEXT_ALONE = ("qat",)
"""The algorithms that go on learning from text: log perplexity rewards it and divergence does not, so both decide."""
WIDE_MARGIN, NARROW_MARGIN = 0.05, 0.10
"""Nats a token: at 4 bits and more, and below."""


# --- measurement -----------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of the variance of a mean, and its degrees of freedom."""

    variance: float
    freedom: float


def shift(ours: MeasuredReadOut, theirs: MeasuredReadOut, measure: str) -> Shift:
    """The difference of two rows in a measure: means over the seeds of each, paired by block."""
    sides = [_over_seeds(read, measure) for read in (ours, theirs)]
    blocks = sides[0] - sides[1]
    return _summed(float(blocks.mean()), [_of_numbers(blocks), *_of_training(ours, theirs, measure)])


def over_frequencies(read: MeasuredReadOut) -> Shift:
    """The log perplexity of a row less what token frequencies reach, with the errors of blocks and of seeds."""
    blocks = _over_seeds(read, LOG_PPLX)
    parts = [_of_numbers(blocks), *([_of_seeds(read, LOG_PPLX)] if _is_trained(read) else [])]
    return _summed(float(blocks.mean()) - read.limit, parts)


def _over_seeds(read: MeasuredReadOut, measure: str) -> np.ndarray:
    return np.mean([of_seed[measure] for of_seed in read.seeds.values()], axis=0)


def _summed(mean: float, parts: Sequence[Part]) -> Shift:
    """A mean whose error has several parts; freedom by Welch and Satterthwaite."""
    total = sum(part.variance for part in parts)
    if any(part.freedom < 1 for part in parts):  # one block, or one seed: there is no spread to judge by
        return Shift(mean, math.inf, 1.0)
    squares = sum(part.variance**2 / part.freedom for part in parts)
    return Shift(mean, math.sqrt(total), total**2 / squares if squares else math.inf)


def _of_numbers(values: Sequence[float] | np.ndarray) -> Part:
    """The variance of the mean of some numbers, of blocks or of seeds."""
    if len(values) < 2:
        return Part(math.inf, 0.0)
    return Part(float(np.var(values, ddof=1)) / len(values), len(values) - 1.0)


def _of_training(ours: MeasuredReadOut, theirs: MeasuredReadOut, measure: str) -> list[Part]:
    """The variances that training adds to a difference."""
    if ours.cells & theirs.cells:
        return _of_one_checkpoint(ours, theirs, measure)
    parts = [_of_seeds(read, measure) for read in (ours, theirs) if _is_trained(read)]
    if len(parts) == 2 and _is_pooled(ours, measure) and ours.noise == theirs.noise:
        # One estimate, whose freedom counts once.
        parts = [Part(sum(part.variance for part in parts), parts[0].freedom)]
    return parts


def _of_one_checkpoint(ours: MeasuredReadOut, theirs: MeasuredReadOut, measure: str) -> list[Part]:
    """Two read-outs of the same checkpoints are paired by seed: their difference has a spread of its own."""
    seeds = [seed for seed in ours.seeds if seed in theirs.seeds]
    if len(seeds) < 2:
        return []
    differences = [float(np.mean(ours.seeds[seed][measure] - theirs.seeds[seed][measure])) for seed in seeds]
    return [_of_numbers(differences)]


def _is_trained(read: MeasuredReadOut) -> bool:
    """True for a row that another seed changes; one seed of it, whose spread nobody knows, decides nothing."""
    return read.is_trained or len(read.seeds) > 1 or read.noise is not None


def _is_pooled(read: MeasuredReadOut, measure: str) -> bool:
    return read.noise is not None and measure in read.noise.nats


def _of_seeds(read: MeasuredReadOut, measure: str) -> Part:
    """The variance of a mean over seeds: by the spread that is pooled over rows like it, where it is known."""
    if read.noise is not None and measure in read.noise.nats:
        pooled = read.noise.nats[measure]
        return Part(pooled.deviation**2 / len(read.seeds), float(pooled.freedom))
    return _of_numbers([float(of_seed[measure].mean()) for of_seed in read.seeds.values()])


def on_the_line(ends: Sequence[MeasuredReadOut], stored_bits: float) -> MeasuredReadOut:
    """A rival of so many stored bits: as far between two rows, seed by seed, as its bits lie between theirs.

    Beyond an end it is that end.
    """
    low, high = sorted(ends, key=lambda read: read.stored_bits)
    share = (stored_bits - low.stored_bits) / (high.stored_bits - low.stored_bits)
    share = min(max(share, 0.0), 1.0)
    seeds = {
        seed: {
            name: (1 - share) * low.seeds[seed][name] + share * high.seeds[seed][name]
            for name in low.measures
            if name in high.measures
        }
        for seed in low.seeds
        if seed in high.seeds
    }
    read = ReadOut(low.read.base, low.read.method, f"between {low.read.plan} and {high.read.plan}")
    cells = low.cells | high.cells
    bits = (1 - share) * low.effective_bits + share * high.effective_bits
    line = MeasuredReadOut(read, seeds, bits, cells=cells, unigram=low.unigram, stored_bits=stored_bits)
    return replace(line, is_trained=_is_trained(low) or _is_trained(high))


# --- rules -----------------------------------------------------------------------------------------------------------


def better(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: the 95 % interval of the difference lies below 0.  Does not hold: it lies above 0, or within the margin.

    Cannot be told: anything else, or both have failed (above {unigram}).  The margin is 0.05 nats a token at 4 bits and
    more, 0.10 below.
    """
    return _by_margin(is_better, ours, theirs[0])


def better_at_its_size(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """As *better*, held against the point at equal stored bits on the line between two rows, a smaller and a larger.

    Stored bits are per parameter of the whole model: codes, scales, zeros and overflow lists, all else in 16 bits.
    """
    rival = on_the_line(theirs, ours.stored_bits)
    found = _by_margin(is_better, ours, rival)
    ends = " and ".join(f"{read.log_pplx:.3f} at {read.stored_bits:.2f}" for read in theirs)
    return replace(found, measured=f"{found.measured}; at {ours.stored_bits:.2f} stored bits, between {ends}")


def as_good(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: the 95 % interval of the difference lies below the margin.  Does not hold: it lies above it.

    Cannot be told: anything else, or both have failed (above {unigram}).
    """
    return _by_margin(is_as_good, ours, theirs[0])


def _by_margin(ask: Callable[..., Question], ours: MeasuredReadOut, theirs: MeasuredReadOut) -> Finding:
    measures = [LOG_PPLX, KL] if {ours.read.base, theirs.read.base} & set(ON_TEXT_ALONE) else [LOG_PPLX]
    if not all(name in read.measures for read in (ours, theirs) for name in measures):
        return Finding("", Verdict(NOT_MEASURED.verdict.word, "divergence"))
    question = ask({name: shift(ours, theirs, name) for name in measures}, margin_of(ours))
    differences = ", ".join(f"{NAMES[name]} {found}" for name, found in question.shifts.items())
    seeds = f"{len(ours.seeds)} and {len(theirs.seeds)} seeds" if max(len(ours.seeds), len(theirs.seeds)) > 1 else ""
    text = "; ".join(filter(None, [f"{ours.log_pplx:.3f} against {theirs.log_pplx:.3f}", differences, seeds]))
    if ours.has_failed and theirs.has_failed:
        return Finding(text, BOTH_FAILED)
    return Asked(text, question.verdict(), question=question)


def margin_of(read: MeasuredReadOut) -> float:
    """The margin in nats: by the bits of the weights that are quantized, without an overflow bucket."""
    return WIDE_MARGIN if round(read.effective_bits) >= 4 else NARROW_MARGIN


def fails(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: log perplexity is above {unigram}, which token frequencies reach, with its 95 % interval.

    Does not hold: it is below.  Cannot be told: the interval contains it.
    """
    return _against_frequencies(ours, wanted=False)


def does_not_fail(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: log perplexity is below {unigram} with its 95 % interval.  Does not hold: it is above."""
    return _against_frequencies(ours, wanted=True)


def _against_frequencies(read: MeasuredReadOut, *, wanted: bool) -> Finding:
    over = over_frequencies(read)
    question = is_below_zero(over, wanted=wanted)
    text = f"{read.log_pplx:.2f}, token frequencies {read.limit:.2f}: {over}"
    return Asked(text, question.verdict(), question=question)


def trains_where_the_baseline_fails(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: with its 95 % interval, log perplexity is below {unigram} and the baseline's above.

    That is what token frequencies reach.  Does not hold: it is above, or the baseline's below.  Cannot be told: an
    interval contains it.
    """
    sides = over_frequencies(ours), over_frequencies(theirs[0])
    question = trains_alone(*sides)
    words = ", ".join(f"{name} {over}" for name, over in zip(("ours", "the baseline"), sides, strict=True))
    text = f"{ours.log_pplx:.2f} against {theirs[0].log_pplx:.2f}; less token frequencies: {words}"
    return Asked(text, question.verdict(), question=question)


def highest_bucket_grows(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: the share of weights in the highest int2 bucket is larger, by more than seeds differ by.

    That is by Student's t over the seeds of both rows; all codes are counted, so nothing else is uncertain.  Does not
    hold: it is smaller, or the change is within that of seeds.
    """
    if not all(len(read.codes) == len(read.seeds) > 1 for read in (ours, theirs[0])):
        return NOT_MEASURED
    shares = [[places(codes)[1] for codes in read.codes.values()] for read in (ours, theirs[0])]
    parts = [_of_numbers(of) for of in shares]
    change = _summed(float(np.mean(shares[0]) - np.mean(shares[1])), parts)
    question = rises(change)
    low, high = change.interval
    text = (
        f"{100 * np.mean(shares[0]):.3f} % against {100 * np.mean(shares[1]):.3f} % of the weights: "
        f"{signed(100 * change.mean, '.3f')} points [{signed(100 * low, '.3f')}, {signed(100 * high, '.3f')}]"
    )
    return Asked(text, question.verdict(), question=question)


MARGIN_RULES: Mapping[str, Judge] = {
    "Better": better,
    "Better at its size": better_at_its_size,
    "As good": as_good,
    "Fails": fails,
    "Does not fail": does_not_fail,
    "Trains where the baseline fails": trains_where_the_baseline_fails,
    "The highest bucket grows": highest_bucket_grows,
}
"""The rules whose docstrings are their text in a document, by the name that a claim uses."""
