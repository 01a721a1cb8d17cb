"""Widths under a budget: never above it, the dynamic program is optimal, evolution never gets worse."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matquant.errors import UserError
from matquant.search.strategies import Choices, dynamic_program, evolve, fill, mutate, pyramid, uniform

WIDTHS = (2, 3, 4, 6, 8)


def choices_of(sizes: list[int], budget: float, *, widths=WIDTHS, overflow: float = 0.0) -> Choices:
    """Units of the given numbers of weights, one a block."""
    costs = tuple(tuple(size * (width + (overflow if width < 8 else 0)) for width in widths) for size in sizes)
    units = tuple(f"unit{number}" for number in range(len(sizes)))
    return Choices(units, tuple(range(len(sizes))), widths, costs, sum(sizes), budget)


SIZES = st.sampled_from([96, 128, 192, 1000])
BUDGETS = st.floats(2.2, 8)
OVERFLOWS = st.sampled_from([0.0, 0.013])


@given(st.lists(SIZES, min_size=1, max_size=12), BUDGETS, OVERFLOWS, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_no_strategy_exceeds_the_budget(sizes, budget, overflow, seed):
    choices, draw = choices_of(sizes, budget, overflow=overflow), random.Random(seed)
    losses = [[draw.random() * (8 - width) for width in choices.widths] for _ in choices.units]
    start = uniform(choices)
    for levels in (
        *(start, pyramid(choices), dynamic_program(choices, losses)),
        *(fill(choices, start, draw), mutate(choices, start, draw)),
    ):
        assert choices.fits(levels)
        assert choices.bits(levels) <= choices.budget + 1e-9
        assert len(levels) == len(choices.units)


@given(st.lists(SIZES, min_size=1, max_size=5), BUDGETS, OVERFLOWS, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_dynamic_program_is_the_best_of_all_assignments(sizes, budget, overflow, seed):
    choices, draw = choices_of(sizes, budget, overflow=overflow), random.Random(seed)
    losses = [[draw.random() for _ in choices.widths] for _ in choices.units]

    def total(levels) -> float:
        return sum(loss[level] for loss, level in zip(losses, levels, strict=True))

    every = itertools.product(range(len(choices.widths)), repeat=len(choices.units))
    best = min(total(levels) for levels in every if choices.fits(levels))
    found = total(dynamic_program(choices, losses))
    if all(float(bits).is_integer() for cost in choices.costs for bits in cost):
        assert found == pytest.approx(best)
    else:
        # Costs are rounded up by at most a 20000th of the budget each.
        tight = Choices(**{**vars(choices), "budget": max(choices.budget * 0.9997, 2.014)})
        every = itertools.product(range(len(choices.widths)), repeat=len(choices.units))
        assert best - 1e-9 <= found <= min(total(levels) for levels in every if tight.fits(levels)) + 1e-9


def toy_loss(levels, share: float) -> float:
    """A loss to which every unit adds by its number; a small share of the text makes it a little wrong."""
    exact = sum((unit + 1) * 2.0**-level for unit, level in enumerate(levels))
    return exact * (1 + (1 - share) * 0.05 * (hash(levels) % 7))


def test_evolution_never_gets_worse_and_ends_near_the_optimum():
    choices = choices_of([100] * 8, 4.0)
    states = list(evolve(choices, toy_loss, generations=30))
    losses = [state.loss for state in states]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert all(choices.fits(state.parent) for state in states)
    table = [[(unit + 1) * 2.0**-level for level in range(5)] for unit in range(8)]
    assert losses[-1] <= 1.05 * toy_loss(dynamic_program(choices, table), 1.0)


def test_an_evolution_goes_on_from_any_generation_to_the_same_end():
    choices = choices_of([100, 200] * 4, 3.3)
    states = list(evolve(choices, toy_loss, generations=8, seed=3))
    assert list(evolve(choices, toy_loss, generations=8, seed=3, start=states[3])) == states[4:]
    assert list(evolve(choices, toy_loss, generations=8, seed=4))[-1].generation == 8


@pytest.mark.parametrize("budget", [1.9, 8.1])
def test_a_budget_out_of_reach_is_refused_with_what_is_possible(budget):
    with pytest.raises(UserError, match=rf"{budget} bits is out of reach.*2.000 or 8.000"):
        choices_of([100] * 4, budget)


@pytest.mark.parametrize(("budget", "level"), [(2.0, 0), (3.5, 1), (8.0, 4)])
def test_a_budget_at_the_edge_has_one_uniform_answer(budget, level):
    choices = choices_of([100, 300], budget)
    assert uniform(choices) == (level, level)
    if budget in (2.0, 8.0):
        assert pyramid(choices) == (level, level)
        assert fill(choices, uniform(choices), random.Random(0)) == (level, level)


def test_a_pyramid_is_the_papers_layout():
    choices = choices_of([100] * 7, 4.0)
    assert list(choices.named(pyramid(choices)).values()) == [2, 4, 4, 8, 4, 4, 2]


def test_a_pyramid_without_its_widths_is_refused():
    with pytest.raises(UserError, match="a pyramid is made of"):
        pyramid(choices_of([100] * 3, 3.0, widths=(2, 3, 4)))
