"""A search for the ends of every group's grid: those with the least squared error over the slices of an objective.

A weight at position u = w / a + z with the code q has the error

    a^2 * sum over r of  lambda_r (u - S(q, r))^2  =  a^2 (L d^2 + 2 C(q) d + D(q)),        d = u - q

    L = sum lambda_r,   C(q) = sum lambda_r (q - S(q, r)),   D(q) = sum lambda_r (q - S(q, r))^2

so any number of slices is two tables of 2^c entries.  A group's error is the sum over its weights, plain or each times
the importance of its input.  All groups of a layer try the same factors of their extreme weights, and then finer ones
around the best of each: the error has many local minima, so several of them are followed.

`reference/range_search_reference.py` spells the error and the choice out in loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
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
from matquant.threads import side_by_side

Rounding = Callable[[Tensor], Tensor]
"""Chooses the codes of weights, as floats, from their positions on the grid."""

# On groups of SmolLM2-135M the chosen ends have at most 0.3 % more error than those of a search with a ratio of 1.01
# for all factors from 0.3 to 1.5 (40,000 pairs); with one minimum followed instead of six it was 8 % at int4.
SMALLEST, RATIO = 0.2, 1.15
"""The smallest factor that all groups try, and the ratio of one to the next."""
REFINEMENTS = ((1.05, 6), (1.025, 2), (1.0125, 1))
"""The ratio of finer factors to those that they surround, and how many of a group's best pairs are surrounded."""
GAIN = 1e-5
"""The share by which an error has to be smaller than that of the pair before it: sums round by less."""


class Factors(NamedTuple):
    """The ends of every group's grid, as multiples of its extreme weights."""

    low: Float[Tensor, "out groups"]
    high: Float[Tensor, "out groups"]


def nearest(objective: Objective) -> Rounding:
    """Rounds to the nearest code, as everything but GPTQ stores weights."""
    top = 2**objective.parent_bits - 1
    return lambda position: position.round().clamp_(0, top)


def best_for_all(objective: Objective) -> Rounding:
    """Takes the code that serves the terms of an objective best, as GPTQ does (`code_choice`)."""
    on = cache(code_choice(objective).to)

    def codes(position: Tensor) -> Tensor:
        flat, here = position.flatten(), on(position.device)
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
    """The factors with the least error of each group, at most `reach`.

    Those of MinMax, 1 and 1, are tried first, so no group has a larger error than on its MinMax grid.  Of factors that
    are as good as each other those nearer to 1 are taken.  A term with a teacher counts as its slice.  Codes are the
    nearest ones unless `codes` chooses others.
    """
    if importance is not None:
        mean = importance.float().mean()
        importance = importance.float() / torch.where(mean > 0, mean, 1.0)
    search = _Search(objective, spec, reach, codes or nearest(objective), importance, weight.device)
    on_cpu = weight.device.type == "cpu"
    # On a CPU as many weights at once as its caches hold.
    rows = weight.detach().split(max(1, (1 << (17 if on_cpu else 22)) // weight.shape[1]))
    with side_by_side(torch.get_num_threads()) if on_cpu else nullcontext(map) as each:
        found = list(each(search.of, rows))
    return Factors(*(torch.cat(parts) for parts in zip(*found, strict=True)))


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
    ends = weight_range(weight.detach(), spec)
    return grid_between(_scaled(factors, ends), objective.parent_bits, spec)


def _scaled(factors: Factors, ends: Range) -> Range:
    return Range(factors.low * ends.low, factors.high * ends.high)


@dataclass(frozen=True)
class _Search:
    """The search of one layer."""

    objective: Objective
    spec: GridSpec
    reach: float
    codes: Rounding
    importance: Float[Tensor, " in"] | None
    device: torch.device

    def of(self, weight: Float[Tensor, "out in"]) -> Factors:
        """The best factors of some rows."""
        weight = weight.float()
        ends = weight_range(weight, self.spec)
        tried = [Factors(*(torch.full_like(ends.low, factor) for factor in pair)) for pair in self.shared()]
        for ratio, number in REFINEMENTS:
            tried = self._beside(self._best(tried, number, weight, ends), ratio)
        return self._best(tried, 1, weight, ends)[0]

    def shared(self) -> list[tuple[float, float]]:
        """The factors that all groups try, those nearest to 1 first."""
        below, above = -math.log(SMALLEST), math.log(self.reach)
        num_below, num_above = (math.ceil(span / math.log(RATIO) - 1e-9) for span in (below, above))
        logs = [-below * i / num_below for i in range(num_below, 0, -1)] + [0.0]
        logs += [above * i / num_above for i in range(1, num_above + 1)]
        pairs = sorted(self._pairs(logs), key=lambda pair: math.hypot(*pair))
        return [(math.exp(low), math.exp(high)) for low, high in pairs]

    def _pairs(self, values: Sequence[float]) -> list[tuple[float, float]]:
        """Values for both ends, which on a symmetric grid are one."""
        return [(value, value) for value in values] if self.spec.symmetric else list(product(values, values))

    def _beside(self, centres: Sequence[Factors], ratio: float) -> list[Factors]:
        """The pairs around each group's best ones, which come first."""
        steps = sorted(self._pairs((-1, 0, 1)), key=lambda step: math.hypot(*step))
        return [
            Factors((low * ratio**i).clamp(max=self.reach), (high * ratio**j).clamp(max=self.reach))
            for i, j in steps
            for low, high in centres
        ]

    def _best(self, tried: Sequence[Factors], number: int, weight: Tensor, ends: Range) -> list[Factors]:
        """The pairs with the least error of each group, the best first; of equally good ones those that come first."""
        rows = len(weight)
        # All grids at once: for each pair alone they would take longer than the errors.
        many = _scaled(Factors(*(torch.cat(parts) for parts in zip(*tried, strict=True))), _repeated(ends, len(tried)))
        grids = zip(*(p.split(rows) for p in grid_between(many, self.objective.parent_bits, self.spec)), strict=True)
        errors = torch.stack([self.error(weight, Grid(*grid)) for grid in grids])
        low, high = (torch.stack(parts) for parts in zip(*tried, strict=True))
        found = []
        for _ in range(number):
            chosen = (errors <= errors.amin(0) * (1 + GAIN)).int().argmax(0, keepdim=True)
            found.append(Factors(low.gather(0, chosen)[0], high.gather(0, chosen)[0]))
            errors.scatter_(0, chosen, math.inf)
        return found

    def error(self, weight: Float[Tensor, "out in"], grid: Grid) -> Float[Tensor, "out groups"]:
        """The error of every group on a grid."""
        groups = grouped(weight, grid.scale.shape[1])
        position = (groups / grid.scale.unsqueeze(-1)).add_(grid.zero.unsqueeze(-1))
        codes = self.codes(position)
        distance = position.sub_(codes)
        if self.objective.is_nested:
            index = codes.flatten().int()
            linear, square = (table.index_select(0, index).view_as(codes) for table in self.tables)
            cost = square.addcmul_(distance, linear.add_(distance, alpha=self.total))
        else:
            cost = distance.square_().mul_(self.total)
        if self.importance is not None:
            cost.mul_(self.importance.view(groups.shape[1:]))
        return cost.sum(-1).mul_(grid.scale.square())

    @cached_property
    def total(self) -> float:
        """L."""
        return sum(term.weight for term in self.objective.terms)

    @cached_property
    def tables(self) -> tuple[Float[Tensor, " codes"], Float[Tensor, " codes"]]:
        """2 C and D of every code."""
        bits = self.objective.parent_bits
        codes = torch.arange(2**bits)
        linear, square = torch.zeros(len(codes)), torch.zeros(len(codes))
        for term in self.objective.terms:
            beyond = (codes - slice_codes(codes, term.slice, parent_bits=bits)).float()
            linear += 2 * term.weight * beyond
            square += term.weight * beyond.square()
        return linear.to(self.device), square.to(self.device)


def _repeated(ends: Range, times: int) -> Range:
    return Range(*(end.repeat(times, 1) for end in ends))
