"""Slow, obvious twin of `matquant.codes.range_search`: every weight, code and slice in a loop of Python floats."""

from __future__ import annotations

import math

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


def group_error(
    weights: Tensor,
    importance: Tensor,
    factors: tuple[float, float],
    objective: Objective,
    spec: GridSpec,
    *,
    best_codes: bool = False,
) -> float:
    """The error of one group, a [1, size] tensor, with these multiples of its extreme weights as the ends."""
    low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
    if spec.symmetric:
        high = weights.abs().amax(1, keepdim=True)
        low = -high
    grid = grid_between(Range(factors[0] * low, factors[1] * high), objective.parent_bits, spec)
    scale, zero = grid.scale.item(), grid.zero.item()
    return error_on(weights[0].tolist(), importance.tolist(), scale, zero, objective, best_codes=best_codes)


def least_error(
    weights: Tensor,
    importance: Tensor,
    objective: Objective,
    spec: GridSpec,
    *,
    smallest: float,
    reach: float,
    num: int,
) -> float:
    """The least error over `num` x `num` factors, evenly spaced in their logarithm, or `num` equal ones of both ends."""
    step = (math.log(reach) - math.log(smallest)) / (num - 1)
    values = [math.exp(math.log(smallest) + i * step) for i in range(num)]
    pairs = [(low, high) for low in values for high in ([low] if spec.symmetric else values)]
    return min(group_error(weights, importance, pair, objective, spec) for pair in pairs)
