"""Grids: MinMax, groups, symmetric, degenerate rows, learnable clipping, stored dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matquant.codes.quantizers import LearnableClipping, dequantize, minmax_grid, quantize, weight_range
from matquant.config.cell import GridSpec

SPECS = [GridSpec(group_size=size, symmetric=symmetric) for size in (None, 4, 8) for symmetric in (False, True)]


def weights(seed: int, rows: int = 6, columns: int = 16, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_rounding_to_nearest_moves_no_weight_by_more_than_half_a_step(spec, seed, bits):
    weight = weights(seed)
    grid = minmax_grid(weight, bits, spec)
    error = (dequantize(quantize(weight, grid, bits), grid) - weight).abs().unflatten(1, (grid.scale.shape[1], -1))
    # A symmetric grid puts zero on the code 2^(c-1): its upper end lies half a step short of the largest weight.
    bound = grid.scale.unsqueeze(-1) * 0.5
    assert (error <= bound * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_codes_are_integers_within_the_width(spec, device):
    weight = weights(1, device=device)
    codes = quantize(weight, minmax_grid(weight, 3, spec), 3)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0
    assert codes.max() <= 7


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, -1e30])
def test_a_row_of_equal_weights_is_kept_exactly(value, device):
    weight = torch.full((2, 8), value, device=device)
    grid = minmax_grid(weight, 8, GridSpec())
    assert torch.equal(dequantize(quantize(weight, grid, 8), grid), weight)


def test_a_row_of_negative_weights_is_within_half_a_step(device):
    weight = -1 - weights(2, device=device).abs()
    grid = minmax_grid(weight, 8, GridSpec())
    assert torch.allclose(dequantize(quantize(weight, grid, 8), grid), weight, atol=grid.scale.max().item())


def test_a_symmetric_grid_keeps_zero(device):
    weight = weights(3, device=device)
    weight[:, 0] = 0
    grid = minmax_grid(weight, 4, GridSpec(symmetric=True))
    assert (grid.zero == 8).all()
    assert (dequantize(quantize(weight, grid, 4), grid)[:, 0] == 0).all()


def test_a_group_has_its_own_grid(device):
    weight = weights(4, device=device)
    grouped, whole = minmax_grid(weight, 4, GridSpec(group_size=4)), minmax_grid(weight[:, :4], 4, GridSpec())
    assert torch.equal(grouped.scale[:, :1], whole.scale)
    assert grouped.scale.shape == (6, 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_sees_scales_as_they_will_be_stored(dtype, device):
    grid = minmax_grid(weights(5, device=device), 8, GridSpec(scale_dtype=dtype))
    assert torch.equal(grid.scale, grid.scale.to(getattr(torch, dtype)).float())
    assert torch.equal(grid.zero, grid.zero.to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_starts_just_inside_the_extreme_weights_and_learns(symmetric, device):
    weight, spec = weights(6, device=device), GridSpec(group_size=8, symmetric=symmetric)
    clipping = LearnableClipping(weight, 4, spec, init=4.0)
    grid, whole = clipping(), minmax_grid(weight, 4, spec)
    assert torch.allclose(grid.scale / whole.scale, torch.sigmoid(torch.tensor(4.0, device=device)), atol=1e-4)
    (grid.scale.sum() + grid.zero.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in clipping.parameters())


def test_clipping_that_clips_nothing_is_minmax(device):
    weight, spec = weights(7, device=device), GridSpec()
    clipped, whole = LearnableClipping(weight, 8, spec, init=40.0)(), minmax_grid(weight, 8, spec)
    assert torch.equal(clipped.scale, whole.scale)
    assert torch.equal(clipped.zero, whole.zero)


def test_the_range_of_a_group_is_its_smallest_and_largest_weight():
    ends = weight_range(torch.tensor([[1.0, 2.0, -3.0, 0.0]]), GridSpec(group_size=2))
    assert ends.low.tolist() == [[1.0, -3.0]]
    assert ends.high.tolist() == [[2.0, 0.0]]
