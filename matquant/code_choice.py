"""The best code for several widths at once: which of 2^c parent codes serves all terms of an objective best.

A weight at position u on its parent's grid (u = w / a + z, in code units) is to be read at the slices of R.  The best
parent code is

    q*(u) = argmin over q of  sum over r in R of  lambda_r (u - S(q, r))^2                       (arXiv:2602.03537)

The public code of that paper tries all 2^c codes for every weight.  It need not: with

    L = sum lambda_r,   A(q) = sum lambda_r S(q, r),   B(q) = sum lambda_r S(q, r)^2

the cost is L u^2 - 2 u A(q) + B(q).  The first part is the same for every code, and the rest is a line in u, so the
best code is read off the lower envelope of 2^c lines: found once for an objective, looked up for every weight by
bisection.  Slices are monotone in the code, so lines come sorted by slope, and the envelope's pieces by code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from matquant.cell import Residual
from matquant.notation import Objective, Slice, Term
from matquant.slicing import slice_codes


class Choice(NamedTuple):
    """For each weight, the piece of the envelope it lies on, and what its slices read there on average."""

    piece: Tensor
    """An integer; under plain rounding a float, the code itself."""
    value: Tensor


@dataclass(frozen=True)
class CodeChoice:
    """The lower envelope of an objective; a weight lies on a piece of it, and a piece is a run of codes.

    The codes of one run are those that no trained slice tells apart.  They cost the same, so the nearest to the weight
    is taken: a parent that is trained for int2 alone still reads well at int8.
    """

    top: int
    """The largest code."""
    breaks: Float[Tensor, " breaks"]
    """Where one piece ends and the next begins; a weight on a break belongs to the lower piece, the smaller code."""
    first: Float[Tensor, " pieces"]
    last: Float[Tensor, " pieces"]
    values: Float[Tensor, " pieces"]
    """The average of the trained slices of a piece's codes, in code units: what a residual is measured from."""
    is_rounding: bool
    """Only the parent itself is trained: the envelope is plain rounding."""

    @property
    def piece_dtype(self) -> torch.dtype:
        return torch.float32 if self.is_rounding else torch.int32

    def choose(self, position: Float[Tensor, "*shape"]) -> Choice:
        """The best piece for every weight, given its position on the grid."""
        if self.is_rounding:
            code = position.round().clamp_(0, self.top)
            return Choice(code, code)
        piece = torch.bucketize(position, self.breaks, out_int32=True)
        return Choice(piece, self.values[piece])

    def codes(self, piece: Tensor, position: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The code of every weight, given its piece: of a run of equally good codes the nearest to the weight."""
        if self.is_rounding:
            return piece
        first = self.first[piece]
        if torch.equal(self.first, self.last):
            return first
        # Half down: of two codes that are equally near, the smaller.
        return (position - 0.5).ceil_().clamp_(first, self.last[piece])

    def to(self, device: torch.device) -> CodeChoice:
        tensors = (part.to(device) for part in (self.breaks, self.first, self.last, self.values))
        return CodeChoice(self.top, *tensors, is_rounding=self.is_rounding)


@cache
def code_choice(objective: Objective, residual: Residual = "mean") -> CodeChoice:
    """The envelope of an objective, found in exact fractions: every float32 position gets an exactly best code."""
    pieces = envelope(_lines(objective))
    breaks = [_float32_below(one.meets(other)) for one, other in pairwise(pieces)]
    average = _average_of(objective.terms, residual)
    return CodeChoice(
        top=2**objective.parent_bits - 1,
        breaks=torch.tensor(breaks, dtype=torch.float32),
        first=torch.tensor([piece.first for piece in pieces], dtype=torch.float32),
        last=torch.tensor([piece.last for piece in pieces], dtype=torch.float32),
        values=torch.tensor([float(average(piece.slices)) for piece in pieces], dtype=torch.float32),
        is_rounding=not objective.is_nested,
    )


class Line(NamedTuple):
    """The cost of a run of codes with equal slices, as a line in u: B - 2 A u."""

    first: int
    last: int
    slices: tuple[int, ...]
    a: Fraction
    b: Fraction

    def meets(self, other: Line) -> Fraction:
        """The position where two codes cost the same."""
        return (other.b - self.b) / (2 * (other.a - self.a))


def envelope(lines: Sequence[Line]) -> list[Line]:
    """The lines that are lowest somewhere, given in the order of ever steeper descent."""
    kept: list[Line] = []
    for line in lines:
        # A line that is lowest in one point only ties there with a smaller code, which wins.
        while len(kept) > 1 and kept[-2].meets(kept[-1]) >= kept[-1].meets(line):
            kept.pop()
        kept.append(line)
    return kept


def _lines(objective: Objective) -> list[Line]:
    codes = torch.arange(2**objective.parent_bits)
    parts = [term.slice for term in objective.terms]
    read = [_slices(codes, part, objective.parent_bits) for part in parts]
    lambdas = [Fraction(term.weight) for term in objective.terms]
    lines = []
    for slices, run in groupby(enumerate(zip(*read, strict=True)), key=lambda numbered: numbered[1]):
        numbers = [code for code, _ in run]
        a = sum((weight * value for weight, value in zip(lambdas, slices, strict=True)), Fraction(0))
        b = sum((weight * value**2 for weight, value in zip(lambdas, slices, strict=True)), Fraction(0))
        lines.append(Line(numbers[0], numbers[-1], slices, a, b))
    return lines


def _slices(codes: Integer[Tensor, " codes"], part: Slice, parent_bits: int) -> list[int]:
    return slice_codes(codes, part, parent_bits=parent_bits).tolist()


def _average_of(terms: Sequence[Term], residual: Residual) -> Callable[[Sequence[int]], Fraction]:
    """The average of a code's slices: each counts once, or as much as its term weighs."""
    counts = [Fraction(1) if residual == "mean" else Fraction(term.weight) for term in terms]
    return lambda slices: (
        sum((count * value for count, value in zip(counts, slices, strict=True)), Fraction(0)) / sum(counts)
    )


def _float32_below(value: Fraction) -> float:
    """The largest float32 that is at most a fraction: a float32 is below one exactly if it is below the other."""
    nearest = torch.tensor(float(value), dtype=torch.float32)
    if Fraction(nearest.item()) > value:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return nearest.item()
