"""Quantization grids: scales and zeros by MinMax (Eq. 1, arXiv:2502.06786) or by learnable clipping (arXiv:2308.13137).

Codes are unsigned, q = clamp(round(w / a + z), 0, 2^c - 1), and stand for the weight a * (q - z).  Scale and zero are
shared by one output channel, or by `group_size` neighbouring inputs of one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from matquant.config.cell import GridSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADROOMS = {"int4": 4, "int3": 3, "int2": 2}
ALIGNMENTS = {"aligned_int4": 4, "aligned_int3": 3, "aligned_int2": 2}


MOST_OF_REACH = 0.995
Ends = tuple[Tensor, Tensor]
"""The factors of the lower and the upper end of each group, [out, groups]."""


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


def top_code(bits: int, spec: GridSpec) -> int:
    """The code of the largest weight: 2^c - 1, or with headroom the top of a slice (240, 224, 192 of 255).

    A parent that is no wider than that slice has nothing to leave free.
    """
    dropped = 0 if spec.headroom == "full" else max(0, bits - HEADROOMS[spec.headroom])
    return (1 << bits) - (1 << dropped)


def grid_between(ends: Range, bits: int, spec: GridSpec) -> Grid:
    """The grid with one end point on code 0 and the other on code T (`top_code`): a = (high - low) / T, z = -low / a.

    A rounded zero is the nearest code, as OmniQuant publishes it; up to half a step of one end is then cut off.  An
    aligned zero is a multiple of 2^(c-r), and both ends fit (`_aligned`).  Either is a constant to the gradient.
    Scale and zero are rounded to the dtype they will be stored in, so that training sees the stored values.
    """
    if spec.zero in ALIGNMENTS:
        return _aligned(ends, bits, spec)
    low, high = ends
    top = top_code(bits, spec)
    middle = float(1 << (bits - 1))
    # A symmetric grid has its zero on the middle code, with more codes below it than above, so that headroom leaves
    # T - z steps for the largest weight.
    span, steps = (high, top - middle) if spec.symmetric and top != 2**bits - 1 else (high - low, top)
    # A group of equal weights spans nothing; any grid that contains their value will do: a = |w|, z = -sign(w).
    constant = torch.maximum(low.abs(), high.abs())
    fallback = torch.where(constant > 0, constant, torch.ones_like(constant))
    usable = span > 2.0**-20 * constant
    # By a tensor: a GPU multiplies by the reciprocal of a plain number, which moves the last bit.
    scale = torch.where(usable, span / span.new_full((), steps), fallback)
    scale = scale.to(DTYPES[spec.scale_dtype]).float()
    zero = torch.full_like(scale, middle) if spec.symmetric else -low / scale
    if spec.zero == "rounded":
        zero = zero.detach().round()
    return Grid(scale, zero.to(DTYPES[spec.scale_dtype]).float())


def _aligned(ends: Range, bits: int, spec: GridSpec) -> Grid:
    """The finest grid that holds both end points and has its zero on a multiple of a slice's step m = 2^(c-r).

    With zero z the scale has to be a(z) = max(-low / z, high / (T - z)), which falls and then rises in z.  So the best
    multiple is one of the two beside T * -low / (high - low), the zero of the unaligned grid.  Weight 0 is always
    inside the grid.  A group of equal weights lies on 0 and the middle code, which every slice reads as they are.
    """
    step = 1 << max(0, bits - ALIGNMENTS[spec.zero])
    top, middle = top_code(bits, spec), float(1 << (bits - 1))
    low, high = ends.low.clamp(max=0), ends.high.clamp(min=0)
    largest = torch.maximum(ends.low.abs(), ends.high.abs())
    with torch.no_grad():
        is_constant = (ends.high - ends.low).abs() <= 2.0**-20 * largest
        span = torch.where(high > low, high - low, torch.ones_like(high))
        # Below T, where a positive end that is lost in the rounding of the quotient still has codes in `below`.
        below = (-low / span * top / step).floor().clamp(max=(top - 1) // step) * step
        above = (below + step).clamp(max=top // step * step)
        is_below = _scale_that_fits(low, high, below, top) <= _scale_that_fits(low, high, above, top)
        zero = torch.where(is_below, below, above)
        zero = torch.where(is_constant, torch.where(ends.high < 0, middle, 0.0), zero)
    scale = torch.where(is_constant, largest / middle, _scale_that_fits(low, high, zero, top))
    scale = torch.where(largest > 0, scale, torch.ones_like(scale))
    return Grid(_stored_from_above(scale, DTYPES[spec.scale_dtype]), zero)


def _scale_that_fits(low: Tensor, high: Tensor, zero: Tensor, top: int) -> Tensor:
    """The smallest scale that holds both ends; infinite where a side without codes has weights."""

    def of_side(reach: Tensor, codes: Tensor) -> Tensor:
        without = torch.where(reach > 0, math.inf, 0.0)
        return torch.where(codes > 0, reach / codes.clamp(min=1), without)

    return torch.maximum(of_side(-low, zero), of_side(high, top - zero))


def _stored_from_above(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of a dtype that is no smaller than a positive scale, so that what fitted still fits.

    The nearest number moves an end by up to a step in bfloat16, and by several, or to a scale of 0, where float16 has
    few digits left.
    """
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    if dtype == torch.float32:
        return scale
    nearest = scale.detach().to(dtype)
    following = (nearest.view(torch.int16) + 1).view(dtype)
    stored = torch.where(nearest.float() < scale, following, nearest).float()
    return stored + (scale - scale.detach())  # the gradient of a scale that is not rounded


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
    """Learns how far from the extreme weights the grid ends: a = (g*max - b*min)/(2^c - 1), z = -b*min/a.

    The factors g and b are `reach * sigmoid(logit)`, one logit for each end of a group, so a reach above 1 lets a grid
    end beyond the extreme weights.  They start at sigmoid(init) whatever the reach is (4.0 is 0.982, close to MinMax),
    or at factors of their own.
    Source: OmniQuant, arXiv:2308.13137, Eq. 2, which has no reach.
    """

    def __init__(
        self, weight: Float[Tensor, "out in"], bits: int, spec: GridSpec, init: float | Ends, reach: float = 1.0
    ) -> None:
        super().__init__()
        self.bits, self.spec, self.reach = bits, spec, reach
        self.ends = weight_range(weight.detach(), spec)
        if isinstance(init, tuple):
            # A sigmoid moves little near its ends, so that a factor of the whole reach would stay there.
            low, high = ((factor / reach).clamp(1 - MOST_OF_REACH, MOST_OF_REACH).logit() for factor in init)
        else:
            low = high = torch.full_like(self.ends.high, logit_within(init, reach))
        self.high_logit = nn.Parameter(high)
        self.low_logit = nn.Parameter(low.clone()) if not spec.symmetric else self.high_logit

    def factors(self) -> tuple[Tensor, Tensor]:
        """The factors of the lower and the upper end."""
        return self.reach * torch.sigmoid(self.low_logit), self.reach * torch.sigmoid(self.high_logit)

    def forward(self, ends: Range | None = None) -> Grid:
        """The clipped grid between the end points of the weights it was made for, or between others."""
        ends = self.ends if ends is None else ends
        low, high = self.factors()
        return grid_between(Range(low * ends.low, high * ends.high), self.bits, self.spec)


class FixedClipping(nn.Module):
    """Grids between the extreme weights as they are, or between fixed factors of them."""

    low: Float[Tensor, "out groups"] | None
    high: Float[Tensor, "out groups"] | None

    def __init__(self, bits: int, spec: GridSpec, factors: Ends | None = None) -> None:
        super().__init__()
        self.bits, self.spec = bits, spec
        low, high = factors or (None, None)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def forward(self, ends: Range) -> Grid:
        """The grid between the end points of the weights as they are now, or between their factors."""
        if self.low is not None and self.high is not None:
            ends = Range(self.low * ends.low, self.high * ends.high)
        return grid_between(ends, self.bits, self.spec)


def logit_within(init: float, reach: float) -> float:
    """The logit with reach * sigmoid(logit) = sigmoid(init)."""
    if reach == 1.0:
        return init
    # Of 1/sigmoid(init) = 1 + e^-init only the logarithm is taken: e^1000 is more than a float holds.
    parts = torch.tensor([reach - 1, reach], dtype=torch.float64).log() - torch.tensor([0.0, init])
    return -torch.logsumexp(parts, 0).item()
