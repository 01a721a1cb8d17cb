"""Blocks of 32 codes, as llama.cpp's legacy quantizations lay them out, and which of them hold a slice exactly.

A block is a float16 scale d, in some kinds a float16 smallest weight m, and 32 codes k:

    Q4_1, Q5_1      d * k + m               any zero: m = -d * z
    Q4_0, Q5_0      d * (k - 8), d * (k - 16)
    Q8_0            d * k, k from -128 to 127

A kind without m holds a slice whose zeros are integers, with codes moved to that kind's own zero.  It is half a bit a
weight smaller, and weight 0 stays exactly 0.  No kind of two or three bits has scales that are free: those of Q2_K and
Q3_K are themselves quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from matquant.codes.quantizers import Grid
from matquant.codes.sliced import SlicedWeight
from matquant.errors import UserError
from matquant.notation import Slice

BLOCK = 32
"""Codes that share a scale; wider groups repeat theirs."""
SMALLEST = 2.0**-24
"""The smallest positive float16."""


@dataclass(frozen=True)
class Kind:
    """One of llama.cpp's block layouts."""

    name: str
    bits: int
    zero: int | None
    """The code of weight 0; None where a smallest weight is stored instead."""

    def holds(self, part: Slice, zero: Tensor) -> bool:
        """True if every code of a slice with these zeros has a place."""
        top = (1 << part.bits) - 1 + part.extra_precision
        if self.zero is None:
            return top < 1 << self.bits
        moved = self.zero - zero
        return bool(((zero == zero.round()) & (moved >= 0) & (moved + top < 1 << self.bits)).all())


KINDS = (
    Kind("Q4_0", 4, 8),
    Kind("Q4_1", 4, None),
    Kind("Q5_0", 5, 16),
    Kind("Q5_1", 5, None),
    Kind("Q8_0", 8, 128),
)
"""Smallest first: the first that holds a layer is taken."""
WIDEST_WITH_MINIMUM = 5
"""Bits of the widest codes that are held whatever their zeros."""


def kind_of(weight: SlicedWeight) -> Kind | None:
    """The smallest kind of block that holds every code of a layer, or None."""
    return next((kind for kind in KINDS if kind.holds(weight.part, weight.grid.zero)), None)


def held_in(name: str, weight: SlicedWeight, kind: Kind) -> SlicedWeight:
    """The layer as its blocks hold it: scales, and smallest weights where there are such, in float16."""
    scale = _half(name, weight.grid.scale).clamp(min=SMALLEST)
    if kind.zero is not None:
        return weight._replace(grid=Grid(scale, weight.grid.zero))
    return weight._replace(grid=Grid(scale, -_smallest(name, weight.grid, scale) / scale))


def _smallest(name: str, grid: Grid, scale: Tensor) -> Tensor:
    # Times the rounded scale, so that the weights that a group has most of, those near 0, move least.
    return _half(name, -scale * grid.zero)


def _half(name: str, values: Tensor) -> Tensor:
    rounded = values.half().float()
    if not rounded.isfinite().all():
        raise UserError(
            f"gguf keeps scales in float16, and one of {name} is {values.abs().max():.3g}; export dense instead"
        )
    return rounded


def pack(name: str, weight: SlicedWeight, kind: Kind) -> np.ndarray:
    """The blocks of a layer, [out, bytes]; the codes and the grid are those of the checkpoint."""
    rows, columns = weight.codes.shape
    repeats = columns // weight.grid.scale.shape[1] // BLOCK
    scale = _half(name, weight.grid.scale).clamp(min=SMALLEST)
    parts = [_bytes_of(scale, repeats)]
    codes = weight.codes.view(rows, columns // BLOCK, BLOCK).to(torch.int16)
    if kind.zero is None:
        parts.append(_bytes_of(_smallest(name, weight.grid, scale), repeats))
    else:
        codes += (kind.zero - weight.grid.zero).repeat_interleave(repeats, 1).to(torch.int16).unsqueeze(-1)
    parts += _code_bytes(codes.numpy(), kind)
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def _bytes_of(values: Tensor, repeats: int) -> np.ndarray:
    """Float16 values as bytes, [out, blocks, 2]."""
    return values.half().repeat_interleave(repeats, 1).unsqueeze(-1).contiguous().numpy().view(np.uint8)


def _code_bytes(codes: np.ndarray, kind: Kind) -> list[np.ndarray]:
    """The bytes of codes, [out, blocks, 32]: two to a byte, sixteen apart, and a fifth bit of each before them all."""
    if kind.bits == 8:
        return [(codes - 128).astype(np.int8).view(np.uint8)]
    codes = codes.astype(np.uint8)
    low = codes & 15
    pairs = low[..., : BLOCK // 2] | low[..., BLOCK // 2 :] << 4
    return [pairs] if kind.bits == 4 else [np.packbits(codes >> 4, axis=-1, bitorder="little"), pairs]
