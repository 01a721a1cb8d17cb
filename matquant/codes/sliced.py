"""One layer as a single slice reads it: codes, scale and zero in the slice's own steps, as engines hold them.

A slice is stored on its parent's grid: a * (S(q, r) - z), with S a multiple of 2^(c-r).  In steps of its own it has
codes k = S / 2^(c-r), scale a * 2^(c-r) and zero z / 2^(c-r).  Powers of two are exact in floating point, so both
spellings are the same weights to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from matquant.codes.nested import Affine, NestedWeight, Transform, undo
from matquant.codes.quantizers import Grid, dequantize
from matquant.codes.slicing import slice_codes
from matquant.notation import Slice


class SlicedWeight(NamedTuple):
    """A linear layer at one width."""

    codes: UInt8[Tensor, "out in"]
    """0 to 2^r - 1; with extra precision up to 2^r."""
    grid: Grid
    part: Slice
    transform: Transform | None = None

    @property
    def num_bits(self) -> int:
        """The bits that a code needs: r, and one more for the overflow bucket."""
        return self.part.bits + self.part.extra_precision

    def affine(self) -> Affine:
        """The weights and the bias: those of `NestedWeight.at`, to the last bit."""
        return undo(dequantize(self.codes, self.grid), self.transform)


def grid_of(grid: Grid, part: Slice, parent_bits: int) -> Grid:
    """The parent's grid in the steps of a slice."""
    step = float(1 << (parent_bits - part.bits))
    return Grid(grid.scale * step, grid.zero / step)


def sliced(nested: NestedWeight, part: Slice) -> SlicedWeight:
    """A slice of a nested weight, in its own steps."""
    steps = slice_codes(nested.codes, part, parent_bits=nested.parent_bits) >> (nested.parent_bits - part.bits)
    return SlicedWeight(steps.to(torch.uint8), grid_of(nested.grid, part, nested.parent_bits), part, nested.transform)
