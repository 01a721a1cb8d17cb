"""Slow, obvious twin of `matquant.codes.nested.read_slices`: straight-through estimators spelled with autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from matquant.codes.quantizers import Grid, grouped
from matquant.config.cell import SliceClamp
from matquant.notation import Slice


def straight_through(exact: Tensor, smooth: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `smooth`; adding zero keeps the value exact."""
    return exact.detach() + (smooth - smooth.detach())


def top_value(part: Slice, step: int) -> float:
    return (2**part.bits - 1 + (0.5 if part.rule == "centre" else 0.0)) * step


def read_slice(weight: Tensor, grid: Grid, part: Slice, *, parent_bits: int, clamp: SliceClamp = "bucket") -> Tensor:
    scale, zero = grid.scale.unsqueeze(-1), grid.zero.unsqueeze(-1)
    position = grouped(weight, grid.scale.shape[1]) / scale + zero
    clamped = torch.clamp(position, 0, 2**parent_bits - 1)
    codes = straight_through(torch.clamp(torch.round(position), 0, 2**parent_bits - 1), clamped)
    step = 2 ** (parent_bits - part.bits)
    buckets = codes / step
    if step > 1:
        added = 0.5 if part.rule == "half_up" else 0.0
        lifted = 0.5 if part.rule == "centre" else 0.0
        buckets = straight_through(torch.floor(codes / step + added) + lifted, codes / step)
    if part.rule != "half_up" and step > 1:
        # The top bucket is the slice's own, so its codes pass, or those up to its value.
        if clamp == "value":
            buckets = torch.where(codes > top_value(part, step), buckets.detach(), buckets)
    elif not part.extra_precision:
        # The value at the border is exact, so clamp the rounded bucket and let only unclamped codes pass.
        overflow = buckets > 2**part.bits - 1 if clamp == "bucket" else codes > (2**part.bits - 1) * step
        buckets = torch.where(overflow, torch.full_like(buckets, 2.0**part.bits - 1), buckets)
    return ((buckets * step - zero) * scale).flatten(1)
