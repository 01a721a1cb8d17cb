"""The best code for several widths at once: of 2^c parent codes, the one that serves all terms of an objective best.

A weight at position u on its parent's grid (u = w / a + z, in code units) is to be read at the slices of R.  The best
parent code is

    q*(u) = argmin over q of  sum over r in R of  lambda_r (u - S(q, r))^2                       (arXiv:2602.03537)

The public code of that paper tries all 2^c codes for every weight.  It need not: with

    L = sum lambda_r,   A(q) = sum lambda_r S(q, r),   B(q) = sum lambda_r S(q, r)^2

the cost is L u^2 - 2 u A(q) + B(q).  The first part is the same for every code, and the rest is a line in u, so the
best code is read off the lower envelope of 2^c lines: found once for an objective, looked up for every weight.  Slices
are monotone in the code, so lines come sorted by slope, and the envelope's pieces by code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import groupby, pairwise
from typing import Literal, NamedTuple, assert_never

import torch
from jaxtyping import Float, Integer, Shaped, UInt8
from torch import Tensor

from matquant.codes.slicing import slice_codes
from matquant.notation import EQ_6, Objective, Slice, Term

Shared = Literal["mean", "weighted"]
"""The error that all slices carry on together: `base.residual`, but for `dual`."""


@dataclass(frozen=True)
class CodeChoice:
    """The lower envelope of an objective: pieces, each of them a run of codes, and the breaks between them.

    The codes of one run are those that no trained slice tells apart.  They cost the same, so the nearest to the weight
    is taken: a parent that is trained for int2 alone still reads well at int8.

    By Eq. 6 no two breaks have the same whole part.  A break is a weighted mean of the points halfway between
    neighbouring values of the slices, which for codes q and q + 1 all lie between q + 1/2 and q + 1; so one comparison
    with the break in a weight's own unit replaces a bisection.  A weight's *place* is then its whole part, plus one if
    it lies above that break, and a piece is a run of places.

    By another rule breaks can share a unit.  Then all breaks are searched, and a place is the number of a piece.
    """

    top: int
    """The largest code."""
    breaks: Float[Tensor, " units"]
    """The break in each unit from 0 to the top code, or infinity, or all breaks (`is_in_units`).

    A weight on a break belongs below it.
    """
    first: UInt8[Tensor, " places"]
    last: UInt8[Tensor, " places"]
    values: Float[Tensor, " places"]
    """The average of the trained slices of a piece's codes, in code units: what a residual is measured from."""
    is_rounding: bool
    """Only the parent itself is trained: the envelope is plain rounding, and a place the code itself, as a float."""
    is_in_units: bool
    """No two breaks have the same whole part."""
    is_single: bool
    """Every piece is a single code; known beforehand, for a CPU that looked at the tables would wait for a GPU."""
    num_targets: int = 1
    """All slices are to read the same weights."""

    def places_like(self, position: Float[Tensor, "*shape"]) -> Tensor:
        """An empty tensor for the places of some weights."""
        return torch.empty_like(position, dtype=torch.float32 if self.is_rounding else torch.int32)

    def place(self, position: Float[Tensor, " weights"], out: Shaped[Tensor, " weights"]) -> Tensor:
        """The place of every weight on the envelope, from its position on the grid."""
        if self.is_rounding:
            return torch.round(position, out=out).clamp_(0, self.top)
        if not self.is_in_units:
            return torch.bucketize(position, self.breaks, out_int32=True, out=out)
        position = position.clamp(0, self.top + 0.5)
        unit = position.to(torch.int32).clamp_(0, self.top)  # NaN gets a wrong place; `solve` refuses it
        # `index_select` is several times as fast as `self.breaks[unit]` on a CPU.
        return torch.add(unit, position > self.breaks.index_select(0, unit), out=out)

    def value(self, place: Shaped[Tensor, " weights"]) -> Float[Tensor, " weights"]:
        """The average that the trained slices of the best code read."""
        return place if self.is_rounding else self.values.index_select(0, place)

    def codes(self, place: Shaped[Tensor, "*shape"], position: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
        """The code of every weight: of a run of equally good codes the nearest to the weight."""
        if self.is_rounding:
            return place.to(torch.uint8)
        first = self.first.index_select(0, place.flatten()).view(place.shape)
        if self.is_single:
            return first
        last = self.last.index_select(0, place.flatten()).view(place.shape)
        # Half down: of two codes that are equally near, the smaller.
        return (position - 0.5).ceil_().clamp_(first, last).to(torch.uint8)

    def joined(self, errors: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
        """One error of each output, where there is one target."""
        return errors

    def to(self, device: torch.device) -> CodeChoice:
        names = ("breaks", "first", "last", "values")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@cache
def code_choice(objective: Objective, residual: Shared = "mean") -> CodeChoice:
    """The envelope of an objective, found in exact fractions: every float32 position gets an exactly best code."""
    pieces = envelope(_lines(objective))
    ends = [_float32_below(one.meets(other)) for one, other in pairwise(pieces)]
    top, units = 2**objective.parent_bits - 1, [math.floor(end) for end in ends]
    in_units = len(set(units)) == len(units)
    assert in_units or objective.rule != EQ_6, f"two breaks of {objective} in one unit"
    breaks = torch.tensor(ends, dtype=torch.float32)
    piece_of = list(range(len(pieces)))
    if in_units:
        breaks = torch.full((top + 1,), math.inf).index_put_((torch.tensor(units, dtype=torch.long),), breaks)
        # A place is counted up at every unit, a piece at every break.
        piece_of = [0, *torch.isfinite(breaks).cumsum(0).tolist()]
    average = _average_of(objective.terms, residual)

    def at_places(facts: Iterable[int | Fraction]) -> Tensor:
        table = [float(fact) for fact in facts]
        return torch.tensor([table[piece] for piece in piece_of], dtype=torch.float32)

    return CodeChoice(
        top=top,
        breaks=breaks,
        first=at_places(piece.first for piece in pieces).to(torch.uint8),
        last=at_places(piece.last for piece in pieces).to(torch.uint8),
        values=at_places(average(piece.slices) for piece in pieces),
        is_rounding=not objective.is_nested,
        is_in_units=in_units,
        is_single=all(piece.first == piece.last for piece in pieces),
    )


class CostLine(NamedTuple):
    """The cost of a run of codes with equal slices, as a line in u: B - 2 A u."""

    first: int
    last: int
    slices: tuple[int, ...]
    a: Fraction
    b: Fraction

    def meets(self, other: CostLine) -> Fraction:
        """The position where two codes cost the same."""
        return (other.b - self.b) / (2 * (other.a - self.a))


def envelope(lines: Sequence[CostLine]) -> list[CostLine]:
    """The lines that are lowest somewhere; `lines` come in the order of ever steeper descent."""
    kept: list[CostLine] = []
    for line in lines:
        # A line that is lowest in one point only ties there with a smaller code, which wins.
        while len(kept) > 1 and kept[-2].meets(kept[-1]) >= kept[-1].meets(line):
            kept.pop()
        kept.append(line)
    return kept


def _lines(objective: Objective) -> list[CostLine]:
    codes = torch.arange(2**objective.parent_bits)
    parts = [term.slice for term in objective.terms]
    read = [_slices(codes, part, objective.parent_bits) for part in parts]
    lambdas = [Fraction(term.weight) for term in objective.terms]
    lines = []
    for slices, run in groupby(enumerate(zip(*read, strict=True)), key=lambda numbered: numbered[1]):
        numbers = [code for code, _ in run]
        a = sum((weight * value for weight, value in zip(lambdas, slices, strict=True)), Fraction(0))
        b = sum((weight * value**2 for weight, value in zip(lambdas, slices, strict=True)), Fraction(0))
        lines.append(CostLine(numbers[0], numbers[-1], slices, a, b))
    return lines


def _slices(codes: Integer[Tensor, " codes"], part: Slice, parent_bits: int) -> list[int]:
    return slice_codes(codes, part, parent_bits=parent_bits).tolist()


def _average_of(terms: Sequence[Term], residual: Shared) -> Callable[[Sequence[int]], Fraction]:
    """The average of a code's slices: each counts once, or as much as its term weighs."""
    match residual:
        case "mean":
            counts = [Fraction(1)] * len(terms)
        case "weighted":
            counts = [Fraction(term.weight) for term in terms]
        case _:
            assert_never(residual)
    return lambda slices: (
        sum((count * value for count, value in zip(counts, slices, strict=True)), Fraction(0)) / sum(counts)
    )


def _float32_below(value: Fraction) -> float:
    """The largest float32 that is at most a fraction; a float32 is above both of them or above neither."""
    nearest = torch.tensor(float(value), dtype=torch.float32)
    if Fraction(nearest.item()) > value:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return nearest.item()
