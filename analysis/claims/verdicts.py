"""Verdicts: the rules that turn a paired measurement into a verdict on a claim.

The rules are the same for every claim and are printed with the claims: the docstring of a rule is its text in the
document.  `{unigram}` in it stands for the log perplexity above which a model of the study has failed, and `{remark}`
for the study's own remark on the rule.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.frame.significance import FEWEST, LEVEL, quantile

Word = Literal["holds", "does not hold", "cannot be told at this scale", "not measured yet"]

MARGIN = 0.005
"""Half a point of Task Avg, the margin that the claims themselves name."""

NATS_MARGIN = 0.05

ABOUT_TWO = (2.00, 2.10)

LEAST_MOVE = (0.1, 0.001)
"""The least changes of the mean code and of a bucket's share of weights; smaller ones in both count as none."""


@dataclass(frozen=True)
class Verdict:
    """One of four words, and the reason for it in a few more."""

    word: Word
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.why})" if self.why else self.word


@dataclass(frozen=True)
class Gain:
    """The gain of ours over theirs in one measure, paired: positive is better, whatever the measure.

    `by_seed`: the same for every seed that both were trained with, if there are several.  `noise`: the difference that
    another training could make in the mean over so many seeds; 0 if unknown.  `freedom`: the degrees of freedom of the
    standard error over documents.
    """

    mean: float
    stderr: float
    p_value: float
    num_documents: int
    by_seed: tuple[float, ...] = ()
    noise: float = 0.0
    freedom: float = math.inf

    @property
    def of_documents_half(self) -> float:
        """Half of the 95 % interval over documents: by Student's t, which is wider for few documents."""
        return quantile(self.freedom) * self.stderr

    @property
    def is_of_too_few(self) -> bool:
        """True if so few documents cannot show a difference, whatever they say."""
        return self.num_documents < FEWEST

    @property
    def seeds_agree(self) -> bool:
        return len({gain > 0 for gain in self.by_seed}) <= 1

    @property
    def is_of_training(self) -> bool:
        """True if other documents and another training could together make as large a difference."""
        return self.noise > 0 and abs(self.mean) <= math.hypot(self.of_documents_half, self.noise)

    @property
    def of_documents(self) -> int:
        """+1 if ours is significantly better on these documents, -1 if worse, 0 if neither or seeds disagree."""
        return (self.mean > 0) - (self.mean < 0) if self.p_value < LEVEL and self.seeds_agree else 0

    @property
    def better(self) -> bool:
        return self.of_documents > 0 and not self.is_of_training

    @property
    def worse(self) -> bool:
        return self.of_documents < 0 and not self.is_of_training

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval: by Student's t over documents, and the noise of training, either side of the mean."""
        return self._within(math.hypot(self.of_documents_half, self.noise))

    @property
    def wary_interval(self) -> tuple[float, float]:
        """The interval of a share of documents, never narrower than n documents allow (the rule of three)."""
        return self._within(max(self.of_documents_half, 3 / self.num_documents))

    def _within(self, half: float) -> tuple[float, float]:
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class PairedGains:
    """Ours against theirs on the same documents, in both measures.

    `both_failed`: both are worse than token frequencies.
    """

    task_avg: Gain
    log_pplx: Gain
    both_failed: bool = False


BOTH_FAILED = Verdict("cannot be told at this scale", "both have failed: worse than token frequencies")
CONTRADICTION = Verdict("cannot be told at this scale", "Task Avg and log perplexity contradict each other")
TRAINING = Verdict("cannot be told at this scale", "no more than another training run changes")


def directional(found: PairedGains) -> Verdict:
    """Holds: significantly better (p < 0.05) in Task Avg or in log perplexity, and significantly worse in neither.

    Does not hold: the reverse.  Cannot be told: neither differs significantly, or the two contradict each other.  Where
    several seeds were trained, a measure in which their differences have not all the same sign decides nothing.  Nor
    does a difference between two trainings that other documents and a third training could make: 95 % by Student's t,
    from the standard deviation over the seeds that the algorithm was trained with at that width, wherever there are
    some; it can still contradict.  Of two models that have both failed (above {unigram}) neither is better.
    """
    measures = (found.task_avg, found.log_pplx)
    if found.both_failed:
        return BOTH_FAILED
    if any(gain.better or gain.worse for gain in measures):
        if {gain.of_documents for gain in measures} == {1, -1}:
            return CONTRADICTION
        return Verdict("holds" if any(gain.better for gain in measures) else "does not hold")
    significant = [gain for gain in measures if gain.p_value < LEVEL]
    if any(not gain.seeds_agree for gain in significant):
        return Verdict("cannot be told at this scale", "seeds disagree")
    if any(gain.is_of_training for gain in significant):
        return TRAINING
    return Verdict("cannot be told at this scale", _why_not(found))


def _why_not(found: PairedGains) -> str:
    """The reason why neither measure differs significantly: too few documents, if it is that."""
    too_few = [
        f"{gain.num_documents} {what} cannot show a difference"
        for gain, what in ((found.task_avg, "documents"), (found.log_pplx, "blocks of text"))
        if gain.is_of_too_few
    ]
    return "; ".join(too_few) or "no significant difference"


def equivalent(found: PairedGains) -> Verdict:
    """Holds: the 95 % interval of the paired difference of Task Avg lies within ±0.5 points.

    Does not hold: it lies wholly outside, another training could not make the difference, and log perplexity does not
    contradict it.  Cannot be told: anything else.  The interval is Student's t times the standard
    error over documents to each side, but never less than 3 / n: so large a difference can hide from n documents that
    show none; training once more is not in it.  {remark}
    """
    low, high = found.task_avg.wary_interval
    if low >= -MARGIN and high <= MARGIN:
        return Verdict("holds")
    if low <= MARGIN and high >= -MARGIN:
        return Verdict("cannot be told at this scale", f"the interval is {100 * (high - low):.1f} points wide")
    if found.task_avg.is_of_training:
        return TRAINING
    if found.log_pplx.of_documents == (-1 if low > 0 else 1):
        return CONTRADICTION
    return Verdict("does not hold", "better by more" if low > 0 else "worse by more")


def at_least_as_good(found: PairedGains) -> Verdict:
    """Does not hold: significantly worse in Task Avg or in log perplexity, and significantly better in neither.

    Holds: significantly better in one of them and worse in neither, or in neither worse while the 95 % interval of log
    perplexity excludes a loss of more than 0.05 nats {remark}.  Cannot be told: anything else, and whether either of
    two failed models is.
    """
    first = directional(found)
    if first.word != "cannot be told at this scale" or found.both_failed:
        return first
    worse = min(found.task_avg.of_documents, found.log_pplx.of_documents) < 0
    if not worse and found.log_pplx.interval[0] >= -NATS_MARGIN:
        return Verdict("holds", "no loss beyond 0.05 nats")
    return first


def interpolates(over_narrower: Gain, over_wider: Gain) -> Verdict:
    """Holds: in log perplexity the width lies between its trained neighbours, within one paired standard error.

    Does not hold: it is significantly worse than the narrower neighbour.  Cannot be told: it is worse than that by more
    than a standard error, but not significantly.  A width better than both still holds.
    """
    if over_narrower.worse:
        return Verdict("does not hold", "worse than the narrower width")
    if over_narrower.mean >= -over_narrower.stderr:
        return Verdict("holds", "better than the wider width too" if over_wider.better else "")
    return Verdict("cannot be told at this scale", "not significantly worse than the narrower width")


def collapses(over_baseline: PairedGains, over_chance: Gain) -> Verdict:
    """Holds: log perplexity is significantly worse than the explicit baseline's, and Task Avg is not above chance.

    Does not hold: Task Avg is significantly above chance, or log perplexity is significantly better.  Cannot be told:
    log perplexity does not differ significantly, or the explicit baseline has failed too (above {unigram}).  Chance is
    25 % with four choices and 50 % with two; BoolQ is left out: one of its two answers is the more frequent.
    """
    if over_baseline.both_failed:
        return BOTH_FAILED
    if over_chance.better or over_baseline.log_pplx.better:
        return Verdict("does not hold", "above chance" if over_chance.better else "better than the baseline")
    if over_baseline.log_pplx.worse:
        return Verdict("holds")
    return Verdict("cannot be told at this scale", "no significant difference")


def beats_all(rivals: Sequence[PairedGains]) -> Verdict:
    """Holds: better than every rival, each by the rule for "above".  Does not hold: worse than one of them.

    Cannot be told: anything between.  The count is stated.
    """
    words = [directional(found).word for found in rivals]
    better, worse = words.count("holds"), words.count("does not hold")
    count = f"better than {better} of {len(words)}, worse than {worse}"
    failed = sum(found.both_failed for found in rivals)
    if failed:
        count += f", failed like {failed}"
    if worse:
        return Verdict("does not hold", count)
    return Verdict("holds" if better == len(words) else "cannot be told at this scale", count)


def trains_where_the_other_fails(ours: Gain, theirs: Gain) -> Verdict:
    """Holds: with its 95 % interval, log perplexity is below {unigram} and the baseline's above.

    That is what the frequencies of single tokens reach: above it a model has failed.  Does not hold: the baseline is
    below it, or ours is above.  Cannot be told: an interval contains it.
    """
    (our_low, our_high), (their_low, their_high) = ours.interval, theirs.interval
    if our_high < 0:
        baseline = "trains" if their_low > 0 else "fails too" if their_high < 0 else "is too close to tell"
        return Verdict("does not hold", f"it fails, the baseline {baseline}")
    if their_low > 0:
        return Verdict("does not hold", "the baseline trains too" if our_low > 0 else "the baseline trains")
    if our_low > 0 and their_high < 0:
        return Verdict("holds")
    return Verdict("cannot be told at this scale", "too close to token frequencies")


def codes_move_up(moves: tuple[float, float], noise: tuple[float, float] = (0.0, 0.0)) -> Verdict:
    """Holds: the mean code and the share of weights in the highest int2 bucket are both larger.

    Does not hold: neither is.  Cannot be told: the two disagree, another training run could make as large a difference
    (Student's t over the seeds there are), or both changes are small: less than a tenth of a code and less than a tenth
    of a percent of the weights.  All codes are counted, so no other test is needed.
    """
    if all(abs(move) < least for move, least in zip(moves, LEAST_MOVE, strict=True)):
        return Verdict("cannot be told at this scale", "codes hardly move")
    if any(0 < abs(move) <= reach for move, reach in zip(moves, noise, strict=True)):
        return TRAINING
    higher = [move > 0 for move in moves]
    if all(higher):
        return Verdict("holds")
    return Verdict("cannot be told at this scale", "the two disagree") if any(higher) else Verdict("does not hold")


def about_two(effective_bits: float) -> Verdict:
    """Holds: between 2.00 and 2.10 effective bits.  Does not hold: outside.  Bits are counted, so no test is needed."""
    low, high = ABOUT_TWO
    return Verdict("holds" if low <= effective_bits <= high else "does not hold")


RULES: Mapping[str, Callable[..., Verdict]] = {
    "Above, helps, gains, beats": directional,
    "Within 0.5 points, close to": equivalent,
    "At least as good": at_least_as_good,
    "Interpolates": interpolates,
    "Collapses": collapses,
    "Beats all others": beats_all,
    "Trains where its baseline fails": trains_where_the_other_fails,
    "Codes move to higher buckets": codes_move_up,
    "About 2.05 effective bits": about_two,
}


def rule_text(rule: Callable[..., Any], *, unigram: float | Mapping[str, float] | None = None, remark: str = "") -> str:
    """The words of a rule, on one line, with the remark of a study."""
    text = " ".join((inspect.getdoc(rule) or "").split())
    text = text.replace("{unigram}", _limit_text(unigram))
    return text.replace(" {remark}", f" {remark}" if remark else "")


def _limit_text(unigram: float | Mapping[str, float] | None) -> str:
    if unigram is None:
        return "token frequencies"
    values = unigram.values() if isinstance(unigram, Mapping) else [unigram]
    return " or ".join(f"{value:.2f}" for value in values) + " nats"
