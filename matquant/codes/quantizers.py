"""Quantization grids: scales and zeros by MinMax (Eq. 1, arXiv:2502.06786) or by learnable clipping (arXiv:2308.13137).

Codes are unsigned, q = clamp(round(w / a + z), 0, 2^c - 1), and stand for the weight a * (q - z).  Scale and zero are
shared by one output channel, or by `group_size` neighbouring inputs of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from matquant.config.cell import GridSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Grid(NamedTuple):
    """Scale (in weight units, positive) and zero (in code units, a real number) of each group of weights."""

    scale: Float[Tensor, "out groups"]
    zero: Float[Tensor, "out groups"]


class Range(NamedTuple):
    """The end points a grid spans, in weight units."""

    low: Float[Tensor, "out groups"]
    high: Float[Tensor, "out groups"]


def grouped(weight: Shaped[Tensor, "out in"], num_groups: int) -> Shaped[Tensor, "out groups group"]:
    """The weights of a linear layer with the inputs that share a scale side by side; a view."""
    return weight.unflatten(1, (num_groups, -1))


def weight_range(weight: Float[Tensor, "out in"], spec: GridSpec) -> Range:
    """Smallest and largest weight of each group; with a symmetric grid, minus and plus the largest magnitude."""
    num_groups = 1 if spec.group_size is None else weight.shape[1] // spec.group_size
    groups = grouped(weight.float(), num_groups)
    if spec.symmetric:
        high = groups.abs().amax(-1)
        return Range(-high, high)
    return Range(groups.amin(-1), groups.amax(-1))


def grid_between(ends: Range, bits: int, spec: GridSpec) -> Grid:
    """The grid of 2^bits values between two end points: a = (high - low) / (2^c - 1), z = -low / a.

    Scale and zero are rounded to the dtype they will be stored in, so that training sees the stored values.
    """
    low, high = ends
    span = high - low
    # A group of equal weights spans nothing; any grid that contains their value will do: a = |w|, z = -sign(w).
    constant = torch.maximum(low.abs(), high.abs())
    fallback = torch.where(constant > 0, constant, torch.ones_like(constant))
    usable = span > 2.0**-20 * constant
    scale = torch.where(usable, span / (2**bits - 1), fallback)
    scale = scale.to(DTYPES[spec.scale_dtype]).float()
    zero = torch.full_like(scale, float(1 << (bits - 1))) if spec.symmetric else -low / scale
    return Grid(scale, zero.to(DTYPES[spec.scale_dtype]).float())


def minmax_grid(weight: Float[Tensor, "out in"], bits: int, spec: GridSpec) -> Grid:
    """The MinMax grid of Eq. 1."""
    return grid_between(weight_range(weight, spec), bits, spec)


def quantize(weight: Float[Tensor, "out in"], grid: Grid, bits: int) -> Float[Tensor, "out in"]:
    """Integer codes as floats: round(w / a + z), clamped to the grid."""
    codes = grouped(weight.float(), grid.scale.shape[1]) / grid.scale.unsqueeze(-1)
    return codes.add_(grid.zero.unsqueeze(-1)).round_().clamp_(0, 2**bits - 1).flatten(1)


def dequantize(codes: Tensor, grid: Grid) -> Float[Tensor, "out in"]:
    """The weights that codes stand for, a * (q - z), in float32."""
    groups = grouped(codes, grid.scale.shape[1]).to(torch.float32, copy=True)
    return groups.sub_(grid.zero.unsqueeze(-1)).mul_(grid.scale.unsqueeze(-1)).flatten(1)


class LearnableClipping(nn.Module):
    """Learns how far inside the extreme weights the grid ends: a = (g*max - b*min)/(2^c - 1), z = -b*min/a.

    g and b are sigmoids of one logit per group, started at `init` (4.0 is 0.982, close to MinMax).
    Source: OmniQuant, arXiv:2308.13137, Eq. 2.
    """

    def __init__(self, weight: Float[Tensor, "out in"], bits: int, spec: GridSpec, init: float) -> None:
        super().__init__()
        self.bits, self.spec = bits, spec
        self.ends = weight_range(weight.detach(), spec)
        self.high_logit = nn.Parameter(torch.full_like(self.ends.high, init))
        self.low_logit = nn.Parameter(torch.full_like(self.ends.low, init)) if not spec.symmetric else self.high_logit

    def forward(self, ends: Range | None = None) -> Grid:
        """The clipped grid between the end points of the weights it was made for, or between others."""
        ends = self.ends if ends is None else ends
        low = torch.sigmoid(self.low_logit) * ends.low
        high = torch.sigmoid(self.high_logit) * ends.high
        return grid_between(Range(low, high), self.bits, self.spec)
