"""The column solve: textbook GPTQ for one width, the brute-force solve for several, and what happens to odd input."""

from __future__ import annotations

import pytest
import torch

from matquant.codes.column_solve import Solution, cuts, solve
from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import Grid, minmax_grid, quantize
from matquant.config.cell import GPTQBase, GridSpec
from matquant.notation import Objective, Slice
from reference.gptq_reference import brute_force, output_error, textbook

INT4 = Objective.parse(4, {"int4": 1.0})
INT8 = Objective.parse(8, {"int8": 1.0})
NESTED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})
WEIGHTED = Objective.parse(8, {"int8": 0.1, "int4": 0.1, "int2": 1.0})
EXTRA = Objective.parse(8, {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0})
SPECS = [GridSpec(group_size=size, symmetric=symmetric) for size in (None, 16, 24, 48) for symmetric in (False, True)]


def problem(seed: int = 0, outputs: int = 12, inputs: int = 96, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the second moments of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) * torch.linspace(0.1, 2, inputs)
    x = torch.randn(tokens, inputs, generator=generator) @ mixing / inputs**0.5
    return torch.randn(outputs, inputs, generator=generator) * 0.02, 2 * x.T @ x / tokens


def base(**changes) -> GPTQBase:
    return GPTQBase.model_validate({"kind": "gptq", **changes})


def solved(weight, hessian, objective=NESTED, spec=GridSpec(), **changes) -> Solution:  # noqa: B008 -- frozen
    return solve(weight, hessian, objective=objective, spec=spec, base=base(**changes))


def error(solution: Solution, weight: torch.Tensor, hessian: torch.Tensor, part: str, parent: int = 8) -> float:
    read = NestedWeight(solution.codes, solution.grid, parent).at(Slice.parse(part)).weight
    return output_error(weight, hessian, read)


def each_weight(part: torch.Tensor, inputs: int) -> torch.Tensor:
    return part.repeat_interleave(inputs // part.shape[1], dim=1).double()


@pytest.mark.parametrize("objective", [INT4, INT8], ids=["int4", "int8"])
@pytest.mark.parametrize("block_size", [1, 7, 32, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_one_width_is_textbook_gptq(objective, block_size, symmetric, device):
    weight, hessian = problem()
    solution = solved(
        weight.to(device), hessian.to(device), objective, GridSpec(symmetric=symmetric), block_size=block_size
    )
    scale, zero = (each_weight(part.cpu(), weight.shape[1]) for part in solution.grid)
    expected = textbook(weight, hessian, scale, zero, bits=objective.parent_bits, damping=0.01)
    # Another device sums in another order, which moves a position over a break here and there.
    same = (solution.codes.cpu() == expected).float().mean()
    assert same == 1 if device.type == "cpu" else same > 0.99


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("objective", [INT4, NESTED, WEIGHTED, EXTRA], ids=lambda objective: str(objective.dump()))
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_several_widths_are_the_brute_force_solve(spec, objective, weighted):
    weight, hessian = problem(1)
    residual = "weighted" if weighted else "mean"
    solution = solved(weight, hessian, objective, spec, residual=residual, block_size=32)
    grid = {"group_size": spec.group_size, "symmetric": spec.symmetric}
    expected = brute_force(weight, hessian, objective, damping=0.01, weighted=weighted, **grid)
    # A position that rounding moves over a break changes a code, and through its error a few behind it in the row.  On
    # a symmetric grid the smallest weight of a group lies on a break: half a step from its two codes.
    assert (solution.codes == expected["codes"]).float().mean() > (0.9 if spec.symmetric else 0.99)
    rival = Solution(expected["codes"], Grid(expected["scale"], expected["zero"]), solution.error, solution.inverse)
    for term in objective.terms:
        errors = [error(one, weight, hessian, str(term), objective.parent_bits) for one in (solution, rival)]
        assert errors[0] == pytest.approx(errors[1], rel=0.05)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_without_correlation_are_rounded_to_nearest(spec, act_order, device):
    weight, hessian = problem()[0].to(device), torch.eye(96, device=device)
    solution = solved(weight, hessian, INT8, spec, act_order=act_order)
    grid = minmax_grid(weight, 8, spec)
    assert torch.equal(solution.codes, quantize(weight, grid, 8).to(torch.uint8))
    assert torch.equal(solution.grid.scale, grid.scale)
    assert torch.equal(solution.grid.zero, grid.zero)


@pytest.mark.parametrize("objective", [INT8, NESTED], ids=["int8", "nested"])
def test_act_order_is_the_solve_of_the_sorted_problem_put_back_into_natural_order(objective):
    weight, hessian = problem(2)
    order = hessian.diagonal().argsort(descending=True)
    ours = solved(weight, hessian, objective, act_order=True)
    sorted_ = solved(weight[:, order], hessian[order][:, order], objective)
    assert torch.equal(ours.codes[:, order], sorted_.codes)
    for part in ("int8", "int4", "int2"):
        read = [NestedWeight(one.codes, one.grid, 8).at(Slice.parse(part)).weight for one in (ours, sorted_)]
        assert torch.equal(read[0][:, order], read[1])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_with_act_order_groups_keep_their_inputs_and_the_grids_of_the_unchanged_weights(spec):
    weight, hessian = problem(3)
    grid = minmax_grid(weight, 8, spec)
    rounded = NestedWeight(quantize(weight, grid, 8).to(torch.uint8), grid, 8)
    for objective, part in ((INT8, Slice(8)), (NESTED, Slice(2))):
        solution = solved(weight, hessian, objective, spec, act_order=True)
        assert torch.equal(solution.grid.scale, grid.scale)
        nearest = output_error(weight, hessian, rounded.at(part).weight)
        assert error(solution, weight, hessian, str(part)) < 0.9 * nearest


def test_groups_are_set_from_weights_that_carry_all_errors_before_them():
    weight, hessian = problem(4)
    fine, coarse = (
        solved(weight, hessian, NESTED, GridSpec(group_size=size), block_size=block).grid.scale
        for size, block in ((16, 96), (16, 16))
    )
    assert torch.allclose(fine, coarse, rtol=1e-4)
    unchanged = minmax_grid(weight, 8, GridSpec(group_size=16)).scale
    assert torch.equal(fine[:, 0], unchanged[:, 0])
    assert not torch.allclose(fine[:, 1:], unchanged[:, 1:], rtol=1e-2)


@pytest.mark.parametrize("num_inputs", [96, 120])
@pytest.mark.parametrize("group_size", [8, 24, 40, 120, None])
@pytest.mark.parametrize("block_size", [1, 7, 16, 32, 128])
def test_blocks_cover_all_columns_and_no_group_begins_in_one_and_ends_in_another(num_inputs, group_size, block_size):
    if group_size is not None and num_inputs % group_size:
        pytest.skip("groups divide the inputs")
    pieces = list(cuts(num_inputs, group_size=group_size or num_inputs, block_size=block_size))
    assert [column for start, stop in pieces for column in range(start, stop)] == list(range(num_inputs))
    assert all(stop - start <= block_size for start, stop in pieces)
    for begin in range(0, num_inputs, group_size or num_inputs):
        start, stop = next(piece for piece in pieces if piece[0] <= begin < piece[1])
        assert begin == start or begin + (group_size or num_inputs) <= stop


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_solve_is_better_than_rounding_at_the_widths_it_is_for(spec):
    weight, hessian = problem(5)
    grid = minmax_grid(weight, 8, spec)
    rounded = NestedWeight(quantize(weight, grid, 8).to(torch.uint8), grid, 8)
    # Not int4 of the three: their mean residual is mostly int2's error, and the wider slices pay for it.
    for objective, part in ((INT8, Slice(8)), (NESTED, Slice(2))):
        nearest = output_error(weight, hessian, rounded.at(part).weight)
        assert error(solved(weight, hessian, objective, spec), weight, hessian, str(part)) < 0.95 * nearest


def test_the_reported_error_is_that_of_the_damped_problem():
    weight, hessian = problem(6)
    solution = solved(weight, hessian, INT4)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96)
    assert solution.error.sum().item() == pytest.approx(error(solution, weight, damped, "int4", 4), rel=1e-3)


def test_a_weighted_residual_lets_weights_trade_widths_and_the_mean_hardly():
    weight, hessian = problem(7, outputs=32)
    ratios = {}
    for residual in ("mean", "weighted"):
        errors = [
            error(solved(weight, hessian, Objective.parse(8, facts), residual=residual), weight, hessian, "int2")
            for facts in ({"int8": 100.0, "int2": 1.0}, {"int8": 1.0, "int2": 100.0})
        ]
        ratios[residual] = errors[0] / errors[1]
    assert 0.9 < ratios["mean"] < 1.1
    assert ratios["weighted"] > 1.3


def test_layers_stacked_on_one_input_are_solved_as_if_each_were_alone():
    weight, hessian = problem(8)
    together = solved(weight, hessian)
    apart = [solved(part, hessian) for part in weight.split(5)]
    assert (together.codes == torch.cat([one.codes for one in apart])).float().mean() > 0.999


def test_an_input_that_no_token_activates_gets_weight_zero_and_leaves_the_others_alone():
    weight, hessian = problem(9)
    weight[:, 40] = 5.0
    hessian[40], hessian[:, 40] = 0.0, 0.0
    solution = solved(weight, hessian)
    assert solution.inverse.dead.nonzero().flatten().tolist() == [40]
    read = NestedWeight(solution.codes, solution.grid, 8).at(Slice(8)).weight
    assert (read[:, 40].abs() <= solution.grid.scale[:, 0]).all()
    others = torch.arange(96) != 40
    alone = solved(weight[:, others], hessian[others][:, others], damping=0.01)
    assert (alone.codes == solution.codes[:, others]).float().mean() > 0.99


def test_without_any_activation_weights_are_zero():
    weight, _ = problem()
    solution = solved(weight, torch.zeros(96, 96))
    assert solution.inverse.dead.all()
    assert torch.equal(NestedWeight(solution.codes, solution.grid, 8).at(Slice(8)).weight, torch.zeros(12, 96))


def indefinite(size: int) -> torch.Tensor:
    """A symmetric matrix with diagonal 1 and an eigenvalue of about -0.5: as rounding can make one, but worse."""
    hessian = torch.eye(size)
    hessian[0, 1] = hessian[1, 0] = 1.5
    return hessian


def test_damping_is_raised_for_a_singular_hessian_and_the_retries_are_recorded():
    weight, _ = problem()
    solution = solved(weight, indefinite(96))
    assert (solution.inverse.retries, solution.inverse.damping) == (2, pytest.approx(1.0))


def test_after_the_last_retry_the_message_names_damping_and_remedy():
    weight, _ = problem()
    with pytest.raises(
        FloatingPointError, match=r"damping 0.1 of its mean diagonal after 1 retries; raise base.damping"
    ):
        solved(weight, indefinite(96), max_damping_retries=1)


def test_second_moments_that_are_not_finite_are_refused():
    weight, hessian = problem()
    hessian[3, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        solved(weight, hessian)


@pytest.mark.parametrize("objective", [INT8, NESTED], ids=["int8", "nested"])
def test_a_scale_that_its_dtype_cannot_hold_is_an_error_and_not_a_wrong_code(objective):
    weight, hessian = problem()
    with pytest.raises(FloatingPointError, match=r"outgrow float32; .* grid.scale_dtype=float32"):
        solved(1e-7 * weight, hessian, objective, GridSpec(scale_dtype="float16"))


def test_a_low_rank_hessian_is_solved_with_the_first_damping():
    weight, hessian = problem(10, tokens=8)
    solution = solved(weight, hessian, INT8)
    assert solution.inverse.retries == 0
    assert error(solution, weight, hessian, "int8") < 1e-3 * output_error(weight, hessian, torch.zeros_like(weight))
