"""A search for the ends of every group's grid: those with the least squared error over the slices of an objective.

A weight at position u = w / a + z with the code q has the error

    a^2 * sum over r of  lambda_r (u - S(q, r))^2  =  a^2 (L d^2 + 2 d C(q) + D(q)),        d = u - q

    L = sum lambda_r,   C(q) = sum lambda_r (q - S(q, r)),   D(q) = sum lambda_r (q - S(q, r))^2

so an objective with any number of slices is two tables of 2^c entries.  A group's error is the sum over its weights,
plain or each times the importance of its input.  All groups of a layer try the same factors of their extreme weights,
and then finer ones around the best of each (`reference/range_search_reference.py` tries all of them in loops).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from matquant.codes.code_choice import code_choice
from matquant.codes.quantizers import Grid, Range, grid_between, grouped, weight_range
from matquant.codes.slicing import slice_codes
from matquant.config.cell import GridSpec
from matquant.notation import Objective

Rounding = Callable[[Tensor], Tensor]
"""Chooses the codes of weights, as floats, from their positions on the grid."""

SMALLEST, RATIO = 0.2, 1.2
"""The smallest factor that all groups try, and the ratio of one to the next."""
REFINEMENTS = (1.2**0.5, 1.2**0.25, 1.2**0.125)
"""The ratios of a group's best factors to those that are tried beside them."""
GAIN = 1e-5
"""The share by which an error has to be smaller than that of factors nearer to 1: sums round by less."""


class Factors(NamedTuple):
    """The ends of every group's grid, as multiples of its extreme weights."""

    low: Float[Tensor, "out groups"]
    high: Float[Tensor, "out groups"]


def nearest(objective: Objective) -> Rounding:
    """Rounds to the nearest code, as everything but GPTQ stores weights."""
    top = 2**objective.parent_bits - 1
    return lambda position: position.round().clamp_(0, top)


def best(objective: Objective) -> Rounding:
    """Takes the code that serves the terms of an objective best, as GPTQ does (`code_choice`)."""
    choice = code_choice(objective)

    def codes(position: Tensor) -> Tensor:
        flat, here = position.flatten(), choice.to(position.device)
        place = here.place(flat, here.places_like(flat))
        return here.codes(place, flat).float().view_as(position)

    return codes


@torch.no_grad()
def search_factors(
    weight: Float[Tensor, "out in"],
    objective: Objective,
    spec: GridSpec,
    *,
    reach: float,
    importance: Float[Tensor, " in"] | None = None,
    codes: Rounding | None = None,
) -> Factors:
    """The factors with the least error of each group, at most `reach`; those of MinMax, 1 and 1, are tried first.

    Of two that are as good the one nearer to 1 is taken.  A term with a teacher counts as its slice.  Codes are the
    nearest ones unless `codes` chooses others.
    """
    if importance is not None:
        importance = importance.float() / importance.float().mean().clamp(min=torch.finfo(torch.float32).tiny)
    rows = max(1, _chunk(weight.device) // weight.shape[1])
    search = _Search(objective, spec, reach, codes or nearest(objective), importance)
    found = [search.of(part.float()) for part in weight.detach().split(rows)]
    return Factors(torch.cat([part.low for part in found]), torch.cat([part.high for part in found]))


def searched_grid(
    weight: Float[Tensor, "out in"],
    objective: Objective,
    spec: GridSpec,
    *,
    reach: float,
    importance: Float[Tensor, " in"] | None = None,
    codes: Rounding | None = None,
) -> Grid:
    """The grid between the ends that `search_factors` finds."""
    factors = search_factors(weight, objective, spec, reach=reach, importance=importance, codes=codes)
    ends = weight_range(weight, spec)
    return grid_between(Range(factors.low * ends.low, factors.high * ends.high), objective.parent_bits, spec)


@dataclass(frozen=True)
class _Search:
    """The search of one layer."""

    objective: Objective
    spec: GridSpec
    reach: float
    codes: Rounding
    importance: Float[Tensor, " in"] | None

    def of(self, weight: Float[Tensor, "out in"]) -> Factors:
        """The best factors of some rows: of those that all groups try, and of finer ones around each group's best."""
        ends = weight_range(weight, self.spec)
        error = _Error(weight, self.objective, self.codes, self.importance, ends.low.shape[1])
        one = torch.ones_like(ends.low)
        best = self._best([Factors(low * one, high * one) for low, high in self._shared()], ends, error)
        for ratio in REFINEMENTS:
            beside = [Factors(best.low * ratio**i, best.high * ratio**j) for i, j in self._steps()]
            best = self._best([Factors(*(part.clamp(max=self.reach) for part in pair)) for pair in beside], ends, error)
        return best

    def _shared(self) -> list[tuple[float, float]]:
        """The factors that all groups try, those nearest to 1 first."""
        logs = [i * math.log(RATIO) for i in range(round(math.log(SMALLEST, RATIO)), 1)]
        count = math.ceil(math.log(self.reach, RATIO) - 1e-9)
        logs += [math.log(self.reach) * i / count for i in range(1, count + 1)]
        pairs = [(i, i) for i in logs] if self.spec.symmetric else list(product(logs, repeat=2))
        return [(math.exp(i), math.exp(j)) for i, j in sorted(pairs, key=lambda pair: (math.hypot(*pair), pair))]

    def _steps(self) -> list[tuple[int, int]]:
        """The neighbours of a pair of factors, itself first."""
        if self.spec.symmetric:
            return [(0, 0), (1, 1), (-1, -1)]
        return sorted(product((-1, 0, 1), repeat=2), key=lambda pair: abs(pair[0]) + abs(pair[1]))

    def _best(self, tried: list[Factors], ends: Range, error: _Error) -> Factors:
        """Of each group's factors those with the least error; of equally good ones the first."""
        low, high = (torch.stack(parts) for parts in zip(*tried, strict=True))
        scaled = Range((low * ends.low).flatten(0, 1), (high * ends.high).flatten(0, 1))
        grids = grid_between(scaled, self.objective.parent_bits, self.spec)
        rows = len(ends.low)
        errors = torch.stack([error.at(Grid(*grid)) for grid in zip(*(part.split(rows) for part in grids), strict=True)])
        chosen = (errors <= errors.amin(0) * (1 + GAIN)).int().argmax(0, keepdim=True)
        return Factors(*(part.gather(0, chosen)[0] for part in (low, high)))


class _Error:
    """The error of some rows on any grid; its buffers are used again, for fresh memory costs more than arithmetic."""

    def __init__(
        self, weight: Tensor, objective: Objective, codes: Rounding, importance: Tensor | None, num_groups: int
    ) -> None:
        self.weight, self.codes = grouped(weight, num_groups), codes
        self.importance = None if importance is None else importance.view(num_groups, -1)
        self.tables = _tables(objective)
        self.total, self.tables = self.tables[0], tuple(table.to(weight.device) for table in self.tables[1:])
        self.nested = objective.is_nested

    def at(self, grid: Grid) -> Float[Tensor, "out groups"]:
        position = (self.weight / grid.scale.unsqueeze(-1)).add_(grid.zero.unsqueeze(-1))
        codes = self.codes(position)
        distance = position.sub_(codes)
        if self.nested:
            index = codes.flatten().int()
            first, second = (table.index_select(0, index).view_as(codes) for table in self.tables)
            cost = first.addcmul_(distance, distance * self.total / 1) if False else torch.addcmul(second, distance, first.add_(distance, alpha=self.total))
        else:
            cost = distance.square_().mul_(self.total)
        if self.importance is not None:
            cost.mul_(self.importance)
        return cost.sum(-1).mul_(grid.scale.square())


def _tables(objective: Objective) -> tuple[float, Tensor, Tensor]:
    """L, 2 C and D of every code."""
    codes = torch.arange(2**objective.parent_bits)
    linear, square = torch.zeros(len(codes)), torch.zeros(len(codes))
    for term in objective.terms:
        beyond = (codes - slice_codes(codes, term.slice, parent_bits=objective.parent_bits)).float()
        linear += 2 * term.weight * beyond
        square += term.weight * beyond.square()
    return sum(term.weight for term in objective.terms), linear, square


def _chunk(device: torch.device) -> int:
    """The number of weights that are tried at once: on a CPU as many as its caches hold."""
    return 1 << 15 if device.type == "cpu" else 1 << 22
