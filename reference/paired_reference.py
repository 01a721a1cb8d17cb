"""Slow twins of `analysis.frame.significance`: every way in which documents or guesses could have gone, one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction


def sign_flip_p_value(strata: Sequence[Sequence[int]]) -> float:
    """The share of all ways to turn differences around whose mean over strata is as far from zero; exact."""
    parts = [Fraction(value, len(stratum)) for stratum in strata for value in stratum]
    observed = abs(sum(parts))
    ways = list(itertools.product((-1, 1), repeat=len(parts)))
    far = sum(abs(sum(sign * part for sign, part in zip(way, parts, strict=True))) >= observed for way in ways)
    return far / len(ways)


def guess_p_value(strata: Sequence[tuple[Sequence[int], Fraction]]) -> float:
    """The probability that guesses are as far from what is expected of them, over all answers that could be right."""
    means = [Fraction(sum(answers), len(answers)) - chance for answers, chance in strata]
    observed = abs(sum(means))
    total = Fraction(0)
    for way in itertools.product((0, 1), repeat=sum(len(answers) for answers, _ in strata)):
        left, found, probability = list(way), Fraction(0), Fraction(1)
        for answers, chance in strata:
            guesses, left = left[: len(answers)], left[len(answers) :]
            found += Fraction(sum(guesses), len(guesses)) - chance
            probability *= math.prod(chance if guess else 1 - chance for guess in guesses)
        total += probability if abs(found) >= observed else 0
    return float(total)
