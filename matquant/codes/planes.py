"""Codes as bit planes, most significant first: the layout in which one file holds every width and no bit twice.

An r-bit code is the top r bits of its parent, rounded half up by the bit below them and clamped (Eq. 6):

    S(q, r) / 2^(c-r) = min(top r bits of q + the next bit, 2^r - 1)

So int-r needs the first r + 1 planes, and the parent itself all c.  The overflow bucket of Eq. 8 needs no more: it is
the same sum without the minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from matquant.notation import Slice

_PLACES = (7, 6, 5, 4, 3, 2, 1, 0)
"""The bit of a byte that each of eight neighbouring inputs has: the first input the highest."""


def planes_needed(part: Slice, parent_bits: int) -> int:
    """The number of planes that a slice is read from: r + 1, or all c of the parent."""
    return min(part.bits + 1, parent_bits)


def to_planes(codes: Integer[Tensor, "out in"], bits: int) -> list[UInt8[Tensor, "out bytes"]]:
    """The planes of c-bit codes, most significant first."""
    return [plane_of(codes, number, bits) for number in range(1, bits + 1)]


def plane_of(codes: Integer[Tensor, "out in"], number: int, bits: int) -> UInt8[Tensor, "out bytes"]:
    """One plane of c-bit codes, of which 1 is the most significant; the last byte of a row is filled up with zeros."""
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, -codes.shape[1] % 8)).unflatten(1, (-1, 8))
    places = torch.tensor(_PLACES, dtype=torch.uint8, device=codes.device)
    return (padded >> (bits - number)).bitwise_and_(1).bitwise_left_shift_(places).sum(-1, dtype=torch.uint8)


def top_bits(planes: Sequence[UInt8[Tensor, "out bytes"]], columns: int) -> UInt8[Tensor, "out in"]:
    """The codes of as many bits as there are planes, at most eight, for so many inputs."""
    spread = _spread(planes[0].device)
    # Eight codes at a time, each in a byte of a word; none is longer than its byte, so that none reaches its neighbour.
    words = torch.zeros(planes[0].numel(), dtype=torch.int64, device=planes[0].device)
    for plane in planes:
        words.bitwise_left_shift_(1).bitwise_or_(spread.index_select(0, plane.flatten().int()))
    return words.view(torch.uint8).view(len(planes[0]), -1)[:, :columns]


@cache
def _spread(device: torch.device) -> Tensor:
    """For each byte of a plane, its eight bits as the bytes of a word, in the order of the inputs.

    It is kept for each device: copying it to a GPU for every layer would wait for that GPU, and fit into no CUDA graph.
    """
    bits = torch.arange(256, device="cpu").unsqueeze(1) >> torch.tensor(_PLACES, device="cpu") & 1
    return bits.to(torch.uint8).view(torch.int64).flatten().to(device)


def sliced_planes(
    planes: Sequence[UInt8[Tensor, "out bytes"]], part: Slice, *, parent_bits: int, columns: int
) -> UInt8[Tensor, "out in"]:
    """The codes of a slice, in its own steps (0 to 2^r - 1, with the overflow bucket 2^r), out of its first planes.

    Planes beyond those that the slice needs are not looked at.
    """
    codes = top_bits(planes[: planes_needed(part, parent_bits)], columns)
    if part.bits == parent_bits:
        return codes
    rounding = codes & 1
    codes = codes.bitwise_right_shift_(1).add_(rounding)
    return codes if part.extra_precision else codes.clamp_(max=(1 << part.bits) - 1)
