"""Slow, obvious twin of `matquant.codes.range_search`: every weight, code and slice in a loop of Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from matquant.codes.quantizers import Range, grid_between
from matquant.config.cell import GridSpec
from matquant.notation import Objective
from reference.gptq_reference import best_code, slices_of


def error_on(
    weights: list[float],
    importance: list[float],
    scale: float,
    zero: float,
    objective: Objective,
    *,
    best_codes: bool = False,
) -> float:
    """sum over weights and terms of importance * lambda * (w - a (S(q, r) - z))^2, with q the nearest code."""
    top, total = 2**objective.parent_bits - 1, 0.0
    for weight, counts in zip(weights, importance, strict=True):
        position = weight / scale + zero
        code = best_code(position, objective) if best_codes else min(max(round(position), 0), top)
        for term, value in zip(objective.terms, slices_of(code, objective), strict=True):
            total += counts * term.weight * (weight - scale * (value - zero)) ** 2
    return total


def group_errors(
    weights: Tensor,
    importance: Tensor,
    factors: Sequence[tuple[float, float]],
    objective: Objective,
    spec: GridSpec,
    *,
    best_codes: bool = False,
) -> list[float]:
    """The errors of one group, a [1, size] tensor, with some multiples of its extreme weights as the ends."""
    low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
    if spec.symmetric:
        high = weights.abs().amax(1, keepdim=True)
        low = -high
    lows, highs = torch.tensor(factors).split(1, dim=1)
    grid = grid_between(Range(lows * low, highs * high), objective.parent_bits, spec)
    group = weights[0].tolist(), importance.tolist()
    return [
        error_on(*group, scale, zero, objective, best_codes=best_codes)
        for scale, zero in zip(grid.scale.flatten().tolist(), grid.zero.flatten().tolist(), strict=True)
    ]


def least_error(weights: Tensor, objective: Objective, spec: GridSpec, *, span: tuple[float, float], num: int) -> float:
    """The least error over `num` factors for either end, evenly spaced in their logarithm; a symmetric grid has one."""
    smallest, largest = map(math.log, span)
    values = [math.exp(smallest + i * (largest - smallest) / (num - 1)) for i in range(num)]
    pairs = [(low, high) for low in values for high in ([low] if spec.symmetric else values)]
    return min(group_errors(weights, torch.ones(weights.shape[1]), pairs, objective, spec))
