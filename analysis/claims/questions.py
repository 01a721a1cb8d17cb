"""Questions: what a case asks of differences in nats, and its verdict among all cases of its claim.

A question knows the p-value of every answer that its measures could give.  Alone, a case has the first answer with
p <= 0.05.  Among the cases of its claim it keeps that answer if Holm's rule does, and cannot be told otherwise: a
correction never turns one answer into another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from analysis.claims.evidence import Finding, signed
from analysis.claims.verdicts import Verdict
from analysis.frame.contests import holm
from analysis.frame.significance import LEVEL, quantile
from evaluation.results.metrics import KL, LOG_PPLX

if TYPE_CHECKING:
    from analysis.claims.verdicts import Word

NAMES = {LOG_PPLX: "log perplexity", KL: "divergence"}
UNTOLD: Word = "cannot be told at this scale"
TOO_WIDE = Verdict(UNTOLD, "the interval is too wide")


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
        mean = f"{signed(self.mean, '.3f')} nats"
        if math.isinf(self.stderr):
            return f"{mean} (one block, or one seed of what is trained: no interval)"
        low, high = (signed(end, ".3f") for end in self.interval)
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Question:
    """The answers that could be given, with their p-values of two sides: by measure, which all have to agree.

    Where two answers are both significant, the first counts.  `otherwise`: the verdict where none is.  `shifts` and
    `margin`: the differences that are asked about, and what is too small to matter, if the question has one.
    """

    answers: Mapping[str, Mapping[Verdict, float]]
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    margin: float | None = None
    otherwise: Verdict = TOO_WIDE

    def verdict(self) -> Verdict:
        """The verdict on the case as if it were the only one of its claim."""
        found = [self._given(name) or self.otherwise for name in self.answers]
        if len({one.word for one in found}) > 1:
            words = [f"{NAMES[name]}: {one.word}" for name, one in zip(self.answers, found, strict=True)]
            return Verdict(UNTOLD, "; ".join(words))
        return found[0]

    @property
    def p_value(self) -> float:
        """The p-value of the answer that is given; of two measures the larger.  1 if none is, or if they disagree."""
        given = [self._given(name) for name in self.answers]
        if any(one is None or one.word != self.verdict().word for one in given):
            return 1.0
        return max(of[one] for of, one in zip(self.answers.values(), given, strict=True) if one is not None)

    def _given(self, name: str) -> Verdict | None:
        return next((answer for answer, p_value in self.answers[name].items() if p_value <= LEVEL), None)


def is_better(shifts: Mapping[str, Shift], margin: float) -> Question:
    """Asks whether ours is better; an interval below 0 and within the margin says that it is, by little."""
    alike = Verdict("does not hold", f"alike within {margin:.2f} nats")

    def answers(shift: Shift) -> dict[Verdict, float]:
        return {
            Verdict("holds"): _two_sided(shift.below(0)),
            Verdict("does not hold", "worse"): _two_sided(shift.above(0)),
            alike: _two_sided(max(shift.below(margin), shift.above(-margin))),
        }

    return Question({name: answers(shift) for name, shift in shifts.items()}, shifts, margin)


def is_as_good(shifts: Mapping[str, Shift], margin: float) -> Question:
    """Asks whether ours is worse by less than a margin."""
    beyond = Verdict("does not hold", f"worse by more than {margin:.2f} nats")

    def answers(shift: Shift) -> dict[Verdict, float]:
        return {Verdict("holds"): _two_sided(shift.below(margin)), beyond: _two_sided(shift.above(margin))}

    return Question({name: answers(shift) for name, shift in shifts.items()}, shifts, margin)


def is_below_zero(over: Shift, *, wanted: bool) -> Question:
    """Asks whether a model is better than token frequencies; `over`: its log perplexity less theirs."""
    answers = {
        Verdict("holds" if wanted else "does not hold"): _two_sided(over.below(0)),
        Verdict("does not hold" if wanted else "holds"): _two_sided(over.above(0)),
    }
    return Question({LOG_PPLX: answers}, otherwise=Verdict(UNTOLD, "too close to token frequencies"))


def trains_alone(ours: Shift, theirs: Shift) -> Question:
    """Asks whether ours is better than token frequencies and the other is worse, from both less these frequencies."""
    answers = {
        Verdict("holds"): _two_sided(max(ours.below(0), theirs.above(0))),
        Verdict("does not hold", "it fails"): _two_sided(ours.above(0)),
        Verdict("does not hold", "the baseline trains"): _two_sided(theirs.below(0)),
    }
    return Question({LOG_PPLX: answers}, otherwise=Verdict(UNTOLD, "too close to token frequencies"))


def rises(change: Shift) -> Question:
    """Asks whether a share becomes larger; a change that seeds could make is none."""
    answers = {
        Verdict("holds"): _two_sided(change.above(0)),
        Verdict("does not hold", "the share falls"): _two_sided(change.below(0)),
    }
    return Question({"share": answers}, otherwise=Verdict("does not hold", "no more than seeds differ by"))


def _two_sided(p_value: float) -> float:
    return min(1.0, 2 * p_value)


@dataclass(frozen=True)
class Asked(Finding):
    """A finding whose verdict hangs on how many cases its claim has."""

    question: Question = field(kw_only=True)


def corrected(found: Sequence[Finding]) -> list[Finding]:
    """The findings of one claim, with verdicts by Holm's step-down rule; those without a question stay as they are.

    All cases count, also those of which nothing can be told and those that are not measured yet: their number was
    chosen before anything was measured, and a verdict is not withdrawn when others are.
    """
    p_values = [one.question.p_value if isinstance(one, Asked) else 1.0 for one in found]
    return [
        replace(one, verdict=_among_many(one.question, adjusted)) if isinstance(one, Asked) else one
        for one, adjusted in zip(found, holm(p_values), strict=True)
    ]


def _among_many(question: Question, adjusted: float) -> Verdict:
    """The verdict on a case whose adjusted p-value is so large."""
    alone = question.verdict()
    if adjusted > LEVEL >= question.p_value:
        return Verdict(UNTOLD, f"{alone.word} by itself, but not among so many cases")
    return alone
