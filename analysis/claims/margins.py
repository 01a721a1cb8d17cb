"""Margins: verdicts on differences in nats, with the spread of seeds, corrected for the number of cases of a claim.

A study whose claims are about text alone uses these rules instead of those of `verdicts`: one measure decides (two,
where training goes on learning from text like the test text), and what is too small to matter is said in nats
beforehand.  The standard error of a difference has two parts, added as squares: that of the paired mean over blocks,
and the spread of seeds over the root of their number, for each row that is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from analysis.claims.evidence import NOT_MEASURED, Finding, Judge, MeasuredReadOut, signed
from analysis.claims.verdicts import BOTH_FAILED, Verdict
from analysis.frame.contests import holm
from analysis.frame.significance import LEVEL, quantile
from evaluation.results.metrics import KL, LOG_PPLX

if TYPE_CHECKING:
    from analysis.claims.verdicts import Word

NAMES = {LOG_PPLX: "log perplexity", KL: "divergence"}
ON_TEXT_ALONE = ("qat",)
"""The algorithms that go on learning from text: log perplexity rewards it and divergence does not, so both decide."""
WIDE_MARGIN, NARROW_MARGIN = 0.05, 0.10
"""Nats a token: at 4 bits and more, and below."""
UNTOLD: Word = "cannot be told at this scale"

Ask = Literal["better", "as good"]


@dataclass(frozen=True)
class Shift:
    """Ours minus theirs in one measure, in nats a token, so that less is better; with Student's t of `freedom`."""

    mean: float
    stderr: float
    freedom: float

    def below(self, bound: float) -> float:
        """The p-value, of one side, of the true difference lying below a bound."""
        from scipy.stats import t

        if self.stderr == 0:
            return 0.0 if self.mean < bound else 1.0
        return float(t.cdf((self.mean - bound) / self.stderr, self.freedom))

    def above(self, bound: float) -> float:
        return replace(self, mean=-self.mean).below(-bound)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, not corrected for the number of cases."""
        half = quantile(self.freedom) * self.stderr
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        low, high = (signed(end, ".3f") for end in self.interval)
        return f"{signed(self.mean, '.3f')} nats [{low}, {high}]"


@dataclass(frozen=True)
class Question:
    """A case of a claim: the measures that decide it, the margin in nats, and the words that are asked for."""

    ask: Ask
    shifts: Mapping[str, Shift]
    margin: float

    def answers(self, shift: Shift) -> dict[tuple[Word, str], float]:
        """The p-value, of two sides, of every answer that a measure could give."""
        beyond = f"worse by more than {self.margin:.2f} nats"
        if self.ask == "as good":
            one_sided: dict[tuple[Word, str], float] = {
                ("holds", ""): shift.below(self.margin),
                ("does not hold", beyond): shift.above(self.margin),
            }
        else:
            alike = max(shift.below(self.margin), shift.above(-self.margin))
            one_sided = {
                ("holds", ""): shift.below(0),
                ("does not hold", "worse"): shift.above(0),
                ("does not hold", f"alike within {self.margin:.2f} nats"): alike,
            }
        return {answer: min(1.0, 2 * p_value) for answer, p_value in one_sided.items()}

    @property
    def p_value(self) -> float:
        """The p-value of the best answer; of two measures the larger, for both have to answer."""
        return max(min(self.answers(shift).values()) for shift in self.shifts.values())

    def verdict(self, level: float = LEVEL) -> Verdict:
        """The verdict if answers have to be significant at a level."""
        found = [self._of_measure(shift, level) for shift in self.shifts.values()]
        if len({one.word for one in found}) > 1:
            words = [f"{NAMES[name]}: {one.word}" for name, one in zip(self.shifts, found, strict=True)]
            return Verdict(UNTOLD, "; ".join(words))
        return found[0]

    def _of_measure(self, shift: Shift, level: float) -> Verdict:
        for (word, why), p_value in self.answers(shift).items():
            if p_value <= level:
                return Verdict(word, why)
        return Verdict(UNTOLD, "the interval is too wide")


@dataclass(frozen=True)
class Asked(Finding):
    """A finding whose verdict hangs on how many cases its claim has."""

    question: Question = field(kw_only=True)


def corrected(found: Sequence[Finding]) -> list[Finding]:
    """The findings of one claim, with verdicts by Holm's step-down rule; those without a question stay as they are.

    Cases of which nothing can be told by themselves count too: their number was chosen before anything was measured.
    """
    p_values = [one.question.p_value for one in found if isinstance(one, Asked)]
    adjusted = iter(holm(p_values))
    return [
        replace(one, verdict=_at(one.question, next(adjusted), len(p_values))) if isinstance(one, Asked) else one
        for one in found
    ]


def _at(question: Question, adjusted: float, number: int) -> Verdict:
    """The verdict on a case whose p-value is so large among so many."""
    alone = question.verdict()
    if adjusted > LEVEL and alone.word != UNTOLD:
        return Verdict(UNTOLD, f"{alone.word} by itself, but not among so many cases")
    # Its other answers have to be as significant as that for which it was chosen.
    factor = adjusted / question.p_value if question.p_value else number
    return alone if adjusted > LEVEL else question.verdict(LEVEL / factor)


# --- measurement -----------------------------------------------------------------------------------------------------


def shift(ours: MeasuredReadOut, theirs: MeasuredReadOut, measure: str) -> Shift:
    """The difference of two rows in a measure: means over the seeds of each, paired by block."""
    sides = [np.mean([of_seed[measure] for of_seed in read.seeds.values()], axis=0) for read in (ours, theirs)]
    blocks = sides[0] - sides[1]
    parts = [(float(blocks.var(ddof=1)) / len(blocks), len(blocks) - 1.0), *_of_training(ours, theirs, measure)]
    total = sum(square for square, _ in parts)
    squares = sum(square**2 / freedom for square, freedom in parts)
    return Shift(float(blocks.mean()), math.sqrt(total), total**2 / squares if squares else math.inf)


class Spread(NamedTuple):
    """The variance of a row's mean from seed to seed, and its freedom; `pooled`: estimated from rows like it too."""

    variance: float
    freedom: float
    pooled: bool


def _of_training(ours: MeasuredReadOut, theirs: MeasuredReadOut, measure: str) -> list[tuple[float, float]]:
    """The variances that training adds to a difference, each with its freedom."""
    if ours.cells & theirs.cells:  # two read-outs of one checkpoint do not differ by training
        return []
    trained = [read for read in (ours, theirs) if len(read.seeds) > 1]
    spreads, shares = [_spread(read, measure) for read in trained], [1 / len(read.seeds) for read in trained]
    if len(spreads) == 2 and spreads[0].pooled and spreads[0] == spreads[1]:
        # One estimate, whose freedom counts once.
        spreads, shares = spreads[:1], [sum(shares)]
    return [(share * one.variance, one.freedom) for one, share in zip(spreads, shares, strict=True)]


def _spread(read: MeasuredReadOut, measure: str) -> Spread:
    """The spread of a row: pooled over rows like it where those are known."""
    if read.noise is not None and measure in read.noise.nats:
        return Spread(read.noise.nats[measure] ** 2, float(read.noise.freedom), pooled=True)
    means = [of_seed[measure].mean() for of_seed in read.seeds.values()]
    return Spread(float(np.var(means, ddof=1)), len(means) - 1.0, pooled=False)


def better(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: the 95 % interval of the difference lies below 0.  Does not hold: it lies above 0, or within the margin.

    Cannot be told: anything else, or both have failed (above {unigram}).  The margin is 0.05 nats a token at 4 bits and
    more, 0.10 below.
    """
    return _asked("better", ours, theirs[0])


def as_good(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: the 95 % interval of the difference lies below the margin.  Does not hold: it lies above it.

    Cannot be told: anything else, or both have failed (above {unigram}).
    """
    return _asked("as good", ours, theirs[0])


def _asked(ask: Ask, ours: MeasuredReadOut, theirs: MeasuredReadOut) -> Finding:
    measures = [LOG_PPLX, KL] if {ours.read.base, theirs.read.base} & set(ON_TEXT_ALONE) else [LOG_PPLX]
    if not all(name in of_seed for read in (ours, theirs) for of_seed in read.seeds.values() for name in measures):
        return NOT_MEASURED
    question = Question(ask, {name: shift(ours, theirs, name) for name in measures}, margin_of(ours))
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
    """Holds: log perplexity is above {unigram}, which token frequencies reach, with its 95 % interval over blocks.

    Does not hold: it is below.  Cannot be told: the interval contains it.
    """
    return _against_frequencies(ours, fails=True)


def does_not_fail(ours: MeasuredReadOut, theirs: Sequence[MeasuredReadOut]) -> Finding:
    """Holds: log perplexity is below {unigram} with its 95 % interval over blocks.  Does not hold: it is above."""
    return _against_frequencies(ours, fails=False)


def _against_frequencies(read: MeasuredReadOut, *, fails: bool) -> Finding:
    assert read.unigram is not None
    blocks = read.outcomes[LOG_PPLX]
    found = Shift(read.log_pplx - read.unigram, float(blocks.std(ddof=1)) / math.sqrt(len(blocks)), len(blocks) - 1.0)
    low, high = found.interval
    text = f"{read.log_pplx:.2f}, token frequencies {read.unigram:.2f}: {found}"
    if low > 0:
        return Finding(text, Verdict("holds" if fails else "does not hold"))
    if high < 0:
        return Finding(text, Verdict("does not hold" if fails else "holds"))
    return Finding(text, Verdict(UNTOLD, "too close to token frequencies"))


MARGIN_RULES: Mapping[str, Judge] = {
    "Better": better,
    "As good": as_good,
    "Fails": fails,
    "Does not fail": does_not_fail,
}
"""The rules whose docstrings are their text in a document, by the name that a claim uses."""
