"""Slow, obvious twin of the grids in `matquant.codes.quantizers`: a group of weights at a time, in exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from matquant.codes.quantizers import DTYPES, Grid, Range
from matquant.config.cell import GridSpec
from reference.slicing_reference import slice_code

NEARLY_EQUAL = Fraction(1, 2**20)
"""Weights whose range is a smaller share of the largest count as equal."""


class ExactGrid(NamedTuple):
    """Scale and zero of one group."""

    scale: Fraction
    zero: Fraction

    def position(self, weight: float) -> Fraction:
        """Where a weight lies, in code units."""
        return Fraction(weight) / self.scale + self.zero


def grid_of(weights: Sequence[float], bits: int, spec: GridSpec) -> ExactGrid:
    """The grid of a group of weights, before it is rounded to a dtype."""
    low, high = Fraction(min(weights)), Fraction(max(weights))
    largest, middle = max(abs(low), abs(high)), Fraction(2 ** (bits - 1))
    is_constant = high - low <= NEARLY_EQUAL * largest
    if spec.symmetric:
        return ExactGrid(_symmetric_scale(largest, bits, spec) if largest else Fraction(1), middle)
    if spec.zero.startswith("aligned"):
        if is_constant:
            return ExactGrid(largest / middle or Fraction(1), middle if high < 0 else Fraction(0))
        return _aligned(low, high, bits, spec)
    if is_constant:
        return ExactGrid(largest or Fraction(1), Fraction((low < 0) - (low > 0)))
    scale = (high - low) / largest_code(bits, spec)
    zero = -low / scale
    return ExactGrid(scale, zero if spec.zero == "real" else Fraction(round(zero)))


def largest_code(bits: int, spec: GridSpec) -> int:
    """The largest code that the slice which headroom names reads as it is; with full headroom the largest code."""
    if spec.headroom == "full":
        return 2**bits - 1
    width = min(bits, int(spec.headroom.removeprefix("int")))

    def read(code: int) -> int:
        return slice_code(code, width, parent_bits=bits, extra_precision=False)

    return max(code for code in range(2**bits) if read(code) == code)


def _symmetric_scale(largest: Fraction, bits: int, spec: GridSpec) -> Fraction:
    """MinMax of minus and plus the largest magnitude; with headroom the scale that puts it on its code."""
    top = largest_code(bits, spec)
    return 2 * largest / top if top == 2**bits - 1 else largest / (top - 2 ** (bits - 1))


def _aligned(low: Fraction, high: Fraction, bits: int, spec: GridSpec) -> ExactGrid:
    """Tries every multiple of the slice's step as the zero, and takes the first with the smallest scale."""
    top, width = largest_code(bits, spec), min(bits, int(spec.zero.removeprefix("aligned_int")))
    candidates = []
    for zero in range(0, top + 1, 2 ** (bits - width)):
        sides = [(max(-low, Fraction(0)), zero), (max(high, Fraction(0)), top - zero)]
        if all(codes > 0 or reach == 0 for reach, codes in sides):
            candidates.append(ExactGrid(max(reach / codes for reach, codes in sides if codes > 0), Fraction(zero)))
    return min(candidates, key=lambda grid: grid.scale)


def trained_grid(ends: Range, bits: int, spec: GridSpec) -> Grid:
    """A grid of ordinary ranges in float32, spelled for autograd: the zero chosen in `grid_of`, the scale from its end.

    The zero of a real grid has a gradient, a rounded one and an aligned one have none.  With an aligned zero the scale
    is that of the end which binds it.
    """
    low, high, top = *ends, largest_code(bits, spec)
    exact = [
        [grid_of([a, b], bits, spec) for a, b in zip(*row, strict=True)]
        for row in zip(low.tolist(), high.tolist(), strict=True)
    ]
    if spec.zero.startswith("aligned"):
        zero = torch.tensor([[float(grid.zero) for grid in row] for row in exact])
        ratios = torch.stack([-low / zero.clamp(min=0.5), high / (top - zero).clamp(min=0.5)])
        scale = ratios.gather(0, ratios.detach().argmax(0, keepdim=True)).squeeze(0)
        return Grid(_as_stored(scale, spec), zero)
    scale = _as_stored((high - low) / top, spec)
    zero = -low / scale
    return Grid(scale, _as_stored(zero if spec.zero == "real" else zero.detach().round(), spec))


def _as_stored(values: Tensor, spec: GridSpec) -> Tensor:
    return values.to(DTYPES[spec.scale_dtype]).float()
