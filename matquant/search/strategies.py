"""Strategies that choose widths under a budget: the paper's pyramid, a dynamic program, and evolutionary search.

The strategies know nothing of models.  They are given the choices (`Choices`) and a loss: of each unit alone at each
width (the dynamic program), or of a whole assignment (evolutionary search, arXiv:2410.14649).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matquant.codes.layouts import arrange, counts
from matquant.errors import UserError
from matquant.notation import MIXED_WIDTHS

Levels = tuple[int, ...]
"""For every unit the number of its width, 0 for the narrowest."""
ROUNDING = 1e-9  # of a bit: a budget that is met exactly is met


@dataclass(frozen=True)
class Choices:
    """Units of layers that share a width, the cost of each at each width, and the budget that all of them share."""

    units: tuple[str, ...]
    blocks: tuple[int, ...]
    """The number of the transformer block that a unit is part of."""
    widths: tuple[int, ...]
    """In bits, ascending."""
    costs: tuple[tuple[float, ...], ...]
    """Bits of a unit at each width: its weights times their effective width."""
    num_weights: int
    budget: float
    """Effective bits of a quantized weight, on average."""

    def __post_init__(self) -> None:
        lowest, highest = (self.bits((level,) * len(self.units)) for level in (0, self.top))
        if not lowest - ROUNDING <= self.budget <= highest + ROUNDING:
            raise UserError(
                f"a budget of {self.budget:g} bits is out of reach: with every layer at int{self.widths[0]} or "
                f"int{self.widths[-1]} the checkpoint has {lowest:.3f} or {highest:.3f}; choose a budget between them"
            )

    @property
    def top(self) -> int:
        return len(self.widths) - 1

    def bits(self, levels: Sequence[int]) -> float:
        """Effective bits of a quantized weight under an assignment."""
        return sum(cost[level] for cost, level in zip(self.costs, levels, strict=True)) / self.num_weights

    def fits(self, levels: Sequence[int]) -> bool:
        return self.bits(levels) <= self.budget + ROUNDING

    def named(self, levels: Sequence[int]) -> dict[str, int]:
        """The width of every unit."""
        return {unit: self.widths[level] for unit, level in zip(self.units, levels, strict=True)}


def uniform(choices: Choices) -> Levels:
    """Every unit at the widest width that the budget allows to all."""
    fitting = [level for level in range(len(choices.widths)) if choices.fits((level,) * len(choices.units))]
    return (max(fitting),) * len(choices.units)


def pyramid(choices: Choices) -> Levels:
    """The paper's layout with the most bits within the budget: int2 at both ends, int8 in the middle, int4 between."""
    if not set(MIXED_WIDTHS) <= set(choices.widths):
        raise UserError(
            f"a pyramid is made of widths {MIXED_WIDTHS}, and this checkpoint has {choices.widths}; "
            f"choose evolution@{choices.budget:g}, or an int8 parent"
        )
    numbers = sorted(set(choices.blocks))
    # From the budget down, one block by two bits at a time, until whole blocks with their true sizes fit.
    for steps in range(math.ceil((choices.budget - min(MIXED_WIDTHS)) * len(numbers) / 2) + 2):
        aim = max(float(min(MIXED_WIDTHS)), choices.budget - 2 * steps / len(numbers))
        of_block = dict(zip(numbers, arrange("pyramid", counts(aim, len(numbers))), strict=True))
        levels = tuple(choices.widths.index(of_block[number]) for number in choices.blocks)
        if choices.fits(levels):
            return levels
    raise AssertionError("all blocks at the narrowest width fit, or there would be no choices")


def dynamic_program(choices: Choices, losses: Sequence[Sequence[float]], *, resolution: int = 20_000) -> Levels:
    """The assignment with the smallest sum of losses, `losses[unit][level]`, within the budget.

    A table over total costs.  It is exact if all costs are whole multiples of some size and the budget holds at most
    `resolution` of them, as with plain widths.  Otherwise costs are rounded up to the budget's `resolution`-th part, so
    that the budget is never exceeded.
    """
    quantum, room = _quantum(choices, resolution)
    best: dict[int, tuple[float, Levels]] = {0: (0.0, ())}
    for cost, loss in zip(choices.costs, losses, strict=True):
        reached: dict[int, tuple[float, Levels]] = {}
        for spent, (total, levels) in best.items():
            for level, bits in enumerate(cost):
                now = spent + math.ceil(bits / quantum - ROUNDING)
                if now <= room and (now not in reached or total + loss[level] < reached[now][0]):
                    reached[now] = total + loss[level], (*levels, level)
        best = _undominated(reached)
    if not best:  # rounding up left no room even for the narrowest
        return (0,) * len(choices.units)
    return min(best.values())[1]


def _quantum(choices: Choices, resolution: int) -> tuple[float, int]:
    """The size in which costs are counted, and the number of them in the budget."""
    total = choices.budget * choices.num_weights
    costs = [bits for cost in choices.costs for bits in cost]
    if all(float(bits).is_integer() for bits in costs):
        size = math.gcd(*(int(bits) for bits in costs))
        if (room := math.floor(total / size + ROUNDING)) <= resolution:
            return size, room
    return total / resolution, resolution


def _undominated(states: Mapping[int, tuple[float, Levels]]) -> dict[int, tuple[float, Levels]]:
    """The states with a lower loss than every cheaper state."""
    kept: dict[int, tuple[float, Levels]] = {}
    lowest = math.inf
    for spent in sorted(states):
        if states[spent][0] < lowest:
            kept[spent] = states[spent]
            lowest = states[spent][0]
    return kept


@dataclass(frozen=True)
class Evolution:
    """The state of an evolutionary search: its generations, and the best assignment so far with its loss."""

    generation: int
    parent: Levels
    loss: float


TOURNAMENT = ((16, 1 / 16), (4, 1 / 4), (1, 1.0))
"""The number of offspring that survive each round, and the share of the text that decides the round (EvoPress)."""


def evolve(
    choices: Choices,
    loss: Callable[[Levels, float], float],
    *,
    generations: int,
    offspring: int = 64,
    seed: int = 0,
    start: Evolution | None = None,
) -> Iterable[Evolution]:
    """EvoPress: makes offspring of the best assignment so far, and lets a tournament pick the next one.

    `loss(levels, share)` is measured on a share of the text.  The parent stays unless an offspring is better on all of
    it, so the loss never rises.  Yields the state after each generation; a search goes on from any of them to the same
    end, since each generation draws from a generator of its own.
    """
    if start is None:
        first = uniform(choices)
        start = Evolution(0, first, loss(first, 1.0))
        yield start
    best = start
    for generation in range(start.generation, generations):
        draw = random.Random(f"{seed}/{generation}")
        drawn = {mutate(choices, best.parent, draw): None for _ in range(offspring)}
        survivors = [levels for levels in drawn if levels != best.parent]
        measured: list[tuple[float, Levels]] = []
        for number, share in TOURNAMENT:
            measured = sorted((loss(levels, share), levels) for levels in survivors)[:number]
            survivors = [levels for _, levels in measured]
        if measured and measured[0][0] < best.loss:
            best = Evolution(generation + 1, measured[0][1], measured[0][0])
        else:
            best = Evolution(generation + 1, best.parent, best.loss)
        yield best


def mutate(choices: Choices, parent: Levels, draw: random.Random) -> Levels:
    """Raises one to three units by one width, and lowers others until the budget is met again.

    EvoPress swaps one for one, which fits where steps cost the same; from int4 one step up costs as much as two down.
    """
    levels = list(parent)
    raised = [unit for unit, level in enumerate(levels) if level < choices.top]
    raised = draw.sample(raised, min(len(raised), draw.randint(1, 3), draw.randint(1, 3)))
    for unit in raised:
        levels[unit] += 1
    while not choices.fits(levels):
        others = [unit for unit, level in enumerate(levels) if level > 0 and unit not in raised]
        levels[draw.choice(others or [unit for unit, level in enumerate(levels) if level > 0])] -= 1
    return fill(choices, levels, draw)


def fill(choices: Choices, levels: Sequence[int], draw: random.Random) -> Levels:
    """Raises units, drawn at random, as long as one can be raised within the budget."""
    filled = list(levels)
    while True:
        raised = [
            [*filled[:unit], level + 1, *filled[unit + 1 :]] for unit, level in enumerate(filled) if level < choices.top
        ]
        fitting = [one for one in raised if choices.fits(one)]
        if not fitting:
            return tuple(filled)
        filled = draw.choice(fitting)
