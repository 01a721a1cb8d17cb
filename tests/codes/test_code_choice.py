"""The code choice: the lower envelope finds what trying all codes finds, for any widths, weights and position."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matquant.codes.code_choice import CodeChoice, code_choice
from matquant.notation import Objective
from reference.gptq_reference import best_code, cost_of, slice_of

OBJECTIVES = [
    Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0}),
    Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int3": 1.0}),
    Objective.parse(8, {"int8": 0.1, "int4": 0.1, "int2": 1.0}),
    Objective.parse(8, {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0}),
    Objective.parse(8, {"int2": 1.0}),
    Objective.parse(8, {"int2+ep": 1.0}),
    Objective.parse(6, {"int6": 1.0, "int4": 0.3}),
    Objective.parse(4, {"int4": 1.0}),
    Objective.parse(8, {"int8": 0.1, "int4_floor": 0.1, "int2_floor": 1.0}),
    Objective.parse(8, {"int2_floor": 1.0}),
    Objective.parse(8, {"int8": 1.0, "int4_centre": 1.0, "int3_centre": 1.0, "int2_centre": 1.0}),
]


@st.composite
def facts(draw) -> tuple[int, dict[str, float]]:
    """Parent and terms; made into an objective by the test, since hypothesis forbids the draws of checked calls."""
    parent = draw(st.integers(2, 8))
    narrow = st.tuples(st.integers(1, parent - 1), st.booleans()).map(lambda part: f"int{part[0]}{'+ep' * part[1]}")
    parts = draw(st.lists(st.one_of(narrow, st.just(f"int{parent}")), min_size=1, max_size=4, unique=True))
    weights = st.floats(1e-3, 1e3, allow_nan=False).map(lambda weight: round(weight, 4))
    return parent, {part: draw(weights) for part in parts}


def chosen(positions: torch.Tensor, objective: Objective) -> list[int]:
    choice = code_choice(objective)
    return [int(code) for code in choice.codes(places(choice, positions), positions)]


def test_a_choice_on_another_device_is_the_same(device):
    for objective in OBJECTIVES:
        choice = code_choice(objective)
        positions = torch.cat([around(choice.breaks[choice.breaks.isfinite()]), torch.linspace(-10, 270, 57)])
        here, there = choice.to(device), positions.to(device)
        found = places(here, there)
        assert torch.equal(found.cpu(), places(choice, positions))
        assert here.codes(found, there).tolist() == chosen(positions, objective)
        assert torch.equal(here.value(found).cpu(), choice.value(places(choice, positions)))


def places(choice: CodeChoice, positions: torch.Tensor) -> torch.Tensor:
    return choice.place(positions, out=choice.places_like(positions))


def around(values: torch.Tensor) -> torch.Tensor:
    """Positions, and the float32 just below and above each."""
    return torch.cat([values, values.nextafter(torch.tensor(math.inf)), values.nextafter(torch.tensor(-math.inf))])


def is_best(code: int, position: float, objective: Objective) -> bool:
    """True for the code that trying all codes finds; plain rounding, half to even, may find another of equal cost."""
    best = best_code(position, objective)
    return code == best or (
        not objective.is_nested and cost_of(code, position, objective) == cost_of(best, position, objective)
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: str(objective.dump()))
def test_on_every_break_and_beside_it_the_best_code_is_chosen(objective):
    # Between two breaks the best code stays the same, so positions at and beside all breaks are all there is to try.
    breaks = code_choice(objective).breaks
    positions = around(breaks[breaks.isfinite()])
    for position, code in zip(positions.tolist(), chosen(positions, objective), strict=True):
        assert is_best(code, position, objective), (position, code)


@given(facts(), st.lists(st.floats(-40, 300, width=32), min_size=1, max_size=6))
@settings(max_examples=120, deadline=None)
def test_for_any_objective_and_position_the_best_code_is_chosen(drawn, positions):
    objective = Objective.parse(*drawn)
    for position, code in zip(positions, chosen(torch.tensor(positions), objective), strict=True):
        assert is_best(code, position, objective), (position, code)


@given(facts(), st.sampled_from(["mean", "weighted"]))
@settings(max_examples=40, deadline=None)
def test_the_residual_is_measured_from_the_average_of_the_slices(drawn, residual):
    objective = Objective.parse(*drawn)
    positions = torch.linspace(-10, 270, 57)
    choice = code_choice(objective, residual)
    found = places(choice, positions)
    counts = [Fraction(term.weight) if residual == "weighted" else Fraction(1) for term in objective.terms]
    for code, value in zip(choice.codes(found, positions).tolist(), choice.value(found).tolist(), strict=True):
        slices = [slice_of(int(code), term.slice, objective.parent_bits) for term in objective.terms]
        average = sum((count * part for count, part in zip(counts, slices, strict=True)), Fraction(0)) / sum(counts)
        assert value == pytest.approx(float(average), rel=1e-6)


def test_one_width_is_rounding_as_the_grid_does_it():
    positions = torch.linspace(-3, 18, 400)
    choice = code_choice(Objective.parse(4, {"int4": 1.0}))
    assert torch.equal(choice.value(places(choice, positions)), positions.round().clamp(0, 15))


def test_of_codes_that_no_trained_slice_tells_apart_the_nearest_is_taken():
    positions = torch.tensor([-5.0, 10.2, 40.4, 70.0, 100.6, 255.9])
    assert chosen(positions, Objective.parse(8, {"int2": 1.0})) == [0, 10, 40, 70, 101, 255]


def test_weights_decide_where_two_widths_disagree():
    # At 95.6 int8 is nearest to 96, which int2 rounds up to 128, 32.4 away; 95 it rounds down to 64, 31.6 away.
    position = torch.tensor([95.6])
    assert chosen(position, Objective.parse(8, {"int8": 1.0, "int2": 1e-3})) == [96]
    assert chosen(position, Objective.parse(8, {"int8": 1.0, "int2": 1e3})) == [95]
