"""A parent's codes stored in two parts: a base, which is one slice, and the residual that makes the parent of it.

    q = 2^(c-r) b + e        b = S(q, r) / 2^(c-r), r bits        e in -2^(c-r-1) ... 2^(c-r-1) - 1, c - r bits

Bit planes hold every width, and int-r is read from r + 1 of them.  A base is read from r bits, and its residual is sent
when somebody wants the parent; another width between them cannot be read.  Codes whose rounding was clamped (Eq. 6) are
further from their base than c - r bits can say: the list of overflow weights names them, as for Extra Precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Integer, UInt8
from torch import Tensor

from matquant.codes.overflow_list import list_bits
from matquant.codes.planes import planes_needed
from matquant.codes.slicing import slice_codes
from matquant.notation import Slice


class BaseResidual(NamedTuple):
    """The codes of a base, in its own steps, its residual modulo 2^(c-r), and the weights whose base was clamped."""

    base: UInt8[Tensor, "*shape"]
    residual: UInt8[Tensor, "*shape"]
    clamped: Bool[Tensor, "*shape"]


class StoredBits(NamedTuple):
    """The bits of a weight's codes when a device may want one slice, the parent, or both; grids are not in them."""

    base: float
    """The slice alone, as a base."""
    base_and_residual: float
    """Base, residual and the list of clamped weights: the parent and the slice."""
    planes_of_slice: float
    """The slice alone, as bit planes."""
    planes: float
    """All planes: the parent, the slice and every width between."""
    apart: float
    """Two checkpoints, one of each width."""


def split(codes: Integer[Tensor, "*shape"], part: Slice, *, parent_bits: int) -> BaseResidual:
    """Base and residual of a parent's codes."""
    dropped = parent_bits - part.bits
    codes = codes.to(torch.int16)
    base = slice_codes(codes, Slice(part.bits), parent_bits=parent_bits).to(torch.int16) >> dropped
    clamped = codes - (base << dropped) >= 1 << dropped >> 1
    residual = codes & ((1 << dropped) - 1)
    return BaseResidual(base.to(torch.uint8), residual.to(torch.uint8), clamped & (dropped > 0))


def join(parts: BaseResidual, part: Slice, *, parent_bits: int) -> UInt8[Tensor, "*shape"]:
    """The parent's codes again."""
    dropped = parent_bits - part.bits
    bucket = parts.base.to(torch.int16) + parts.clamped
    # The residual is below zero from its half on: the code then lies in the upper half of the bucket before.
    lower = parts.residual >= (1 << dropped >> 1 if dropped else 1)
    return ((bucket - lower.to(torch.int16) << dropped) + parts.residual).to(torch.uint8)


def stored_bits(part: Slice, *, parent_bits: int, num_weights: int, num_clamped: int) -> StoredBits:
    """The stored bits of each of some weights' codes, kept one way or another."""
    listed = list_bits(num_weights, num_clamped) / num_weights if part.bits < parent_bits else 0.0
    return StoredBits(
        base=part.bits,
        base_and_residual=parent_bits + listed,
        planes_of_slice=planes_needed(part, parent_bits),
        planes=parent_bits,
        apart=part.bits + parent_bits,
    )
