"""The search for a group's ends: its error against loops, its choice against MinMax and against trying everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matquant.codes.quantizers import Range, grid_between, minmax_grid, weight_range
from matquant.codes.range_search import Factors, best_for_all, search_factors, searched_grid
from matquant.config.cell import GridSpec
from matquant.notation import Objective
from reference.range_search_reference import group_errors, least_error

INT2, INT3 = Objective.parse(2, {"int2": 1.0}), Objective.parse(3, {"int3": 1.0})
SINGLE = Objective.parse(8, {"int2": 1.0})
NESTED = Objective.parse(8, {"int8": 1.0, "int4": 0.5, "int2": 1.0})
EXTRA = Objective.parse(8, {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0})
TAUGHT = Objective.parse(8, {"int8": 1.0, "int2": 0.5, "8->2": 0.5})
OBJECTIVES = [INT2, INT3, SINGLE, NESTED, EXTRA, TAUGHT]
SPECS = [
    GridSpec(group_size=8),
    GridSpec(group_size=8, symmetric=True),
    GridSpec(group_size=8, zero="rounded"),
    GridSpec(group_size=8, zero="aligned_int2"),
    GridSpec(group_size=8, headroom="int3"),
    GridSpec(group_size=8, symmetric=True, headroom="int2"),
    GridSpec(group_size=8, zero="aligned_int4", headroom="int4", scale_dtype="bfloat16"),
]


def normal(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def errors(weight, factors: Factors, objective, spec, importance=None, *, best_codes=False) -> list[list[float]]:
    """The reference's error of every group: between the factors' ends, and on its MinMax grid."""
    size = spec.group_size or weight.shape[1]
    importance = torch.ones(weight.shape[1]) if importance is None else importance
    found = []
    for row, (lows, highs) in enumerate(zip(factors.low.tolist(), factors.high.tolist(), strict=True)):
        for group, pair in enumerate(zip(lows, highs, strict=True)):
            part = slice(group * size, (group + 1) * size)
            given = (weight[row : row + 1, part], importance[part], [pair, (1.0, 1.0)])
            found.append(group_errors(*given, objective, spec, best_codes=best_codes))
    return found


def total(weight, factors: Factors, objective, spec) -> float:
    """The error of all groups over the weights' own squares and the objective's weights."""
    found = sum(error for error, _ in errors(weight, factors, objective, spec))
    return found / weight.square().sum().item() / sum(term.weight for term in objective.terms)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@given(seed=st.integers(0, 10_000), reach=st.sampled_from([1.0, 1.2, 1.5]), scale=st.sampled_from([1e-4, 1.0, 1e3]))
@settings(max_examples=3, deadline=None)
def test_no_group_is_worse_than_on_its_minmax_grid_or_reaches_beyond_the_bound(spec, objective, seed, reach, scale):
    weight, importance = scale * normal(seed, 2, 16), normal(seed + 1, 1, 16)[0].square()
    factors = search_factors(weight, objective, spec, reach=reach, importance=importance)
    assert all((part >= 0).all() and (part <= reach * (1 + 1e-6)).all() for part in factors)
    for found, of_minmax in errors(weight, factors, objective, spec, importance):
        # Sums in float32; 2e-5 is beyond their rounding, and below a change of any factor.
        assert found <= of_minmax * (1 + 2e-5) + 1e-12 * scale**2
    if spec.symmetric:
        assert torch.equal(*factors)


@pytest.mark.parametrize("spec", SPECS[:4], ids=str)
@pytest.mark.parametrize("objective", [INT2, INT3, SINGLE, NESTED, EXTRA], ids=str)
def test_the_ends_are_as_good_as_those_of_trying_everything(objective, spec):
    weight = normal(3, 3, 8)
    factors = search_factors(weight, objective, spec, reach=1.5)
    found = sum(error for error, _ in errors(weight, factors, objective, spec))
    least = sum(least_error(row[None], objective, spec, span=(0.3, 1.5), num=20) for row in weight)
    assert found <= 1.01 * least


def test_codes_that_serve_all_terms_are_searched_for_as_they_are_chosen():
    weight, spec = normal(5, 3, 16), GridSpec(group_size=8)
    factors = search_factors(weight, NESTED, spec, reach=1.5, codes=best_for_all(NESTED))
    chosen = errors(weight, factors, NESTED, spec, best_codes=True)
    assert all(found <= of_minmax * (1 + 2e-5) for found, of_minmax in chosen)
    nearest = search_factors(weight, NESTED, spec, reach=1.5)
    rounded = errors(weight, nearest, NESTED, spec, best_codes=True)
    assert sum(found for found, _ in chosen) < sum(found for found, _ in rounded)


def test_a_slice_is_as_expressive_as_a_baseline_once_it_reaches_beyond_the_extreme_weights():
    # Eq. 6 clamps the top bucket, so that the range of int2 ends at code 192 of 255.
    weight, spec = normal(7, 4, 256), GridSpec(group_size=64)
    explicit, bound, free = (
        total(weight, search_factors(weight, objective, spec, reach=reach), objective, spec)
        for objective, reach in ((INT2, 1.5), (SINGLE, 1.0), (SINGLE, 1.5))
    )
    assert bound > 1.02 * explicit
    assert free == pytest.approx(explicit, rel=5e-3)
    assert explicit < 0.65 * total(weight, ones(weight, spec), INT2, spec)


def ones(weight: torch.Tensor, spec: GridSpec) -> Factors:
    one = torch.ones_like(weight_range(weight, spec).low)
    return Factors(one, one)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30])
def test_a_group_of_equal_weights_keeps_its_minmax_grid(spec, value):
    weight = torch.full((2, 16), value)
    if spec.zero == "real" and spec.headroom == "full" and not spec.symmetric:
        for objective in (INT2, NESTED):
            grid = searched_grid(weight, objective, spec, reach=1.5)
            assert all(map(torch.equal, grid, minmax_grid(weight, objective.parent_bits, spec)))
    factors = search_factors(weight, NESTED, spec, reach=1.5)
    assert all(part.isfinite().all() for part in factors)


def test_weights_of_one_sign_have_finite_grids_that_are_no_worse():
    weight, spec = 1 + normal(9, 3, 16).abs(), GridSpec(group_size=8)
    for signed in (weight, -weight):
        factors = search_factors(signed, NESTED, spec, reach=1.5)
        assert all(found <= of_minmax * (1 + 2e-5) for found, of_minmax in errors(signed, factors, NESTED, spec))


def test_importance_counts_relative_to_that_of_other_inputs_alone():
    weight, spec = normal(11, 4, 32), GridSpec(group_size=16)
    plain = search_factors(weight, NESTED, spec, reach=1.5)
    assert all(
        map(torch.equal, plain, search_factors(weight, NESTED, spec, reach=1.5, importance=torch.full((32,), 4.0)))
    )
    none = search_factors(weight, NESTED, spec, reach=1.5, importance=torch.zeros(32))
    assert all((part == 1).all() for part in none)
    important = torch.ones(32)
    important[:4] = 1e4
    factors = search_factors(weight, INT2, spec, reach=1.5, importance=important)
    grid = grid_between(Range(*(f * e for f, e in zip(factors, weight_range(weight, spec), strict=True))), 2, spec)
    assert torch.equal(grid.scale, searched_grid(weight, INT2, spec, reach=1.5, importance=important).scale)
    found, plainly = (
        sum(error for error, _ in errors(weight, pair, INT2, spec, important))
        for pair in (factors, search_factors(weight, INT2, spec, reach=1.5))
    )
    assert found < 0.5 * plainly


def test_rows_are_searched_apart():
    weight, spec = normal(13, 80, 1024), GridSpec(group_size=256)  # in several chunks
    whole = search_factors(weight, SINGLE, spec, reach=1.5)
    rows = search_factors(weight[70:73], SINGLE, spec, reach=1.5)
    assert all(torch.equal(one[70:73], other) for one, other in zip(whole, rows, strict=True))


def test_narrow_weights_are_searched_in_float32():
    weight, spec = normal(15, 4, 32).bfloat16(), GridSpec(group_size=16)
    narrow, wide = (search_factors(one, NESTED, spec, reach=1.5) for one in (weight, weight.float()))
    assert all(map(torch.equal, narrow, wide))
