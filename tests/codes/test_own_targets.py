"""A target for each width (`residual=dual`): the best code for all of them, and the solve that carries them on."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matquant.codes.code_choice import code_choice
from matquant.codes.column_solve import Solution
from matquant.codes.own_targets import own_targets
from matquant.codes.quantizers import Grid
from matquant.codes.slicing import slice_codes
from matquant.config.cell import GridSpec
from matquant.notation import Objective, Slice
from reference.gptq_reference import best_code_of_targets, brute_force_of_targets, cost_of_targets
from tests.codes.test_code_choice import OBJECTIVES, facts, places
from tests.codes.test_column_solve import EXTRA, INT4, NESTED, SPECS, WEIGHTED, error, problem, solved

PUBLISHED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int3": 1.0})
WITHOUT_PARENT = Objective.parse(8, {"int4": 1.0, "int2": 1.0})
OTHER_RULE = Objective.parse(8, {"int8": 1.0, "int4_floor": 1.0, "int2_floor": 1.0})
SEVERAL = [NESTED, WEIGHTED, PUBLISHED, EXTRA, WITHOUT_PARENT, OTHER_RULE]
NEARLY = Fraction(1, 100_000)
"""The share by which a code may cost more than the best one: costs are added up in float32."""


def chosen(positions: list[list[float]], objective: Objective) -> list[int]:
    """The codes of some weights, each with a position for every term."""
    choice = own_targets(objective)
    stacked = torch.tensor(positions, dtype=torch.float32).T.flatten()
    place = torch.empty(len(positions), dtype=torch.int32)
    return choice.codes(choice.place(stacked, out=place), stacked).tolist()


@given(facts(), st.data())
@settings(max_examples=40, deadline=None)
def test_no_code_serves_the_targets_better(drawn, data):
    objective = Objective.parse(*drawn)
    of_weight = st.lists(st.floats(-40, 300, width=32), min_size=len(objective.terms), max_size=len(objective.terms))
    positions = data.draw(st.lists(of_weight, min_size=1, max_size=2))
    for position, code in zip(positions, chosen(positions, objective), strict=True):
        best = cost_of_targets(best_code_of_targets(position, objective), position, objective)
        assert cost_of_targets(code, position, objective) <= best * (1 + NEARLY), (position, code)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: str(objective.dump()))
def test_targets_that_are_equal_get_the_code_of_one_target(objective):
    # Halves and quarters are exact, and so are their costs; on a break two codes cost the same.
    positions = torch.arange(-8, 4 * 2**objective.parent_bits + 8) / 4 + 1 / 8
    choice = code_choice(objective)
    expected = choice.codes(places(choice, positions), positions)
    same = chosen([[u] * len(objective.terms) for u in positions.tolist()], objective)
    for u, one, other in zip(positions.tolist(), expected.tolist(), same, strict=True):
        targets = [u] * len(objective.terms)
        costs = [cost_of_targets(code, targets, objective) for code in (one, other)]
        assert one == other or costs[1] <= costs[0] * (1 + NEARLY), (u, one, other)


def test_codes_that_no_slice_tells_apart_are_one_run():
    assert len(own_targets(NESTED).first) == 19
    assert len(own_targets(PUBLISHED).first) == 23
    for objective in SEVERAL:
        choice = own_targets(objective)
        assert choice.first[0] == 0
        assert choice.last[-1] == 255
        assert torch.equal(choice.first[1:], choice.last[:-1] + 1)


def test_what_is_read_of_a_code_is_its_slices():
    choice, codes = own_targets(EXTRA), torch.arange(256)
    expected = [slice_codes(codes, term.slice, parent_bits=8) for term in EXTRA.terms]
    assert choice.value(codes.int()).tolist() == torch.cat(expected).tolist()


@pytest.mark.parametrize("position", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_position_that_no_grid_holds_is_no_place_outside_the_table(position):
    for objective in SEVERAL:
        code = chosen([[position] * len(objective.terms)], objective)[0]
        assert 0 <= code <= 255
        if not math.isnan(position) and abs(position) < math.inf:
            assert slice_codes(torch.tensor([code]), Slice(2), parent_bits=8).item() == (192 if position > 0 else 0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("objective", SEVERAL, ids=lambda objective: str(objective.dump()))
def test_the_solve_is_that_of_a_copy_of_the_weights_for_each_width(objective, spec):
    weight, hessian = problem(1)
    solution = solved(weight, hessian, objective, spec, residual="dual", block_size=32)
    grid = {"group_size": spec.group_size, "symmetric": spec.symmetric}
    expected = brute_force_of_targets(weight, hessian, objective, damping=0.01, **grid)
    rival = Solution(
        expected["codes"], Grid(expected["scale"].float(), expected["zero"].float()), solution.error, solution.inverse
    )
    for term in objective.terms:
        # Codes that no slice of the objective tells apart are as good as each other: slices are compared, not codes.
        slices = [slice_codes(one.codes, term.slice, parent_bits=8) for one in (solution, rival)]
        # float32 moves a position over a break here and there; on a symmetric grid the smallest weight lies on one.
        assert (slices[0] == slices[1]).float().mean() > (0.9 if spec.symmetric else 0.98)
        errors = [error(one, weight, hessian, str(term)) for one in (solution, rival)]
        assert errors[0] == pytest.approx(errors[1], rel=0.05)


@pytest.mark.parametrize("objective", [INT4, Objective.parse(8, {"int2": 1.0})], ids=["int4", "single precision"])
def test_with_one_width_nothing_is_new(objective):
    weight, hessian = problem(2)
    one, other = (solved(weight, hessian, objective, residual=residual) for residual in ("mean", "dual"))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.error, other.error)


@pytest.mark.parametrize("objective", SEVERAL, ids=lambda objective: str(objective.dump()))
@pytest.mark.parametrize("act_order", [False, True])
def test_the_reported_error_is_the_objective_itself(objective, act_order):
    weight, hessian = problem(3)
    solution = solved(weight, hessian, objective, GridSpec(group_size=24), residual="dual", act_order=act_order)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96)
    errors = [term.weight * error(solution, weight, damped, str(term)) for term in objective.terms]
    total = sum(errors) / sum(term.weight for term in objective.terms)
    assert solution.error.sum().item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("objective", SEVERAL, ids=lambda objective: str(objective.dump()))
def test_inputs_without_correlation_leave_all_targets_alike(objective):
    weight, hessian = problem(4)[0], torch.eye(96)
    one, other = (solved(weight, hessian, objective, residual=residual) for residual in ("mean", "dual"))
    assert torch.allclose(one.grid.scale, other.grid.scale)  # a mean of equal numbers, but for its last bit
    slices = [[slice_codes(got.codes, term.slice, parent_bits=8) for term in objective.terms] for got in (one, other)]
    assert (torch.stack(slices[0]) == torch.stack(slices[1])).float().mean() > 0.999


def test_a_width_that_outweighs_the_others_is_solved_as_if_it_were_alone():
    weight, hessian = problem(5)
    # One group an output: its grid is set before any error, so that both have the same.
    both = solved(weight, hessian, Objective.parse(8, {"int8": 1e-6, "int4": 1.0}), residual="dual")
    alone = solved(weight, hessian, Objective.parse(8, {"int4": 1.0}))
    slices = [slice_codes(one.codes, Slice(4), parent_bits=8) for one in (both, alone)]
    assert (slices[0] == slices[1]).float().mean() > 0.999


@pytest.mark.parametrize("objective", [NESTED, PUBLISHED], ids=["842", "843"])
def test_every_width_that_is_trained_reads_better_than_with_one_target(objective):
    weight, hessian = problem(6, outputs=48)
    for term in objective.terms:
        errors = [
            error(solved(weight, hessian, objective, residual=residual), weight, hessian, str(term))
            for residual in ("mean", "dual")
        ]
        assert errors[1] < errors[0]


def test_targets_are_the_same_on_another_device(device):
    choice = own_targets(NESTED)
    positions = torch.linspace(-10, 270, 57 * 3)
    there = choice.to(device)
    place = there.place(positions.to(device), out=torch.empty(57, dtype=torch.int32, device=device))
    assert torch.equal(place.cpu(), choice.place(positions, out=torch.empty(57, dtype=torch.int32)))
    assert torch.equal(there.value(place).cpu(), choice.value(place.cpu()))
