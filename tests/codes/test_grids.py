"""Grids by where their zero lies and by the headroom above their largest weight, against an exact twin."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from matquant.codes.column_solve import solve
from matquant.codes.nested import NestedLinear, nest, read_at, read_slices
from matquant.codes.quantizers import (
    ALIGNMENTS,
    DTYPES,
    HEADROOMS,
    LearnableClipping,
    Range,
    dequantize,
    grid_between,
    minmax_grid,
    quantize,
    top_code,
)
from matquant.config.cell import GPTQBase, GridSpec, Headroom, Zero
from matquant.errors import UserError
from matquant.notation import Objective, Slice
from matquant.runs.checkpoint import load_layers, save_layers
from reference.grid_reference import grid_of, largest_code, trained_grid
from reference.nested_reference import read_slice

KINDS = [GridSpec(zero=zero, headroom=headroom) for zero in get_args(Zero) for headroom in get_args(Headroom)]
ALIGNED = [spec for spec in KINDS if spec.zero in ALIGNMENTS]
SYMMETRIC = [GridSpec(symmetric=True, headroom=headroom) for headroom in get_args(Headroom)]
SPECS = [*KINDS, *SYMMETRIC]
EVERY_SLICE = [Slice(bits, extra) for bits in range(1, 9) for extra in (False, True) if bits < 8 or not extra]


def named(spec: GridSpec) -> str:
    return f"{'symmetric' if spec.symmetric else spec.zero}-{spec.headroom}"


kinds = pytest.mark.parametrize("spec", SPECS, ids=named)
aligned = pytest.mark.parametrize("spec", ALIGNED, ids=named)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def number(magnitude: float = 1.0) -> st.SearchStrategy[float]:
    return st.floats(-magnitude, magnitude, width=32).filter(lambda x: x == 0 or abs(x) > 1e-4 * magnitude)


@st.composite
def groups(draw: st.DrawFn) -> list[float]:
    """A few weights of one size: both signs, one sign, equal, zero, tiny or huge."""
    size = draw(st.sampled_from([1.0, 1e-3, 1e-30, 1e30]))
    weights = draw(st.lists(number(), min_size=1, max_size=6))
    sign = draw(st.sampled_from([None, 1, -1]))
    return torch.tensor([(w if sign is None else sign * abs(w)) * size for w in weights]).tolist()


def weights(seed: int = 0, rows: int = 6, columns: int = 16) -> torch.Tensor:
    """Rows whose middle lies in turn above, at and below zero."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return drawn + torch.linspace(-3, 3, rows).unsqueeze(1)


def position(weight: torch.Tensor, grid) -> torch.Tensor:
    """The place of weights in code units, in float64."""
    groups = weight.double().unflatten(1, (grid.scale.shape[1], -1))
    return (groups / grid.scale.double().unsqueeze(-1) + grid.zero.double().unsqueeze(-1)).flatten(1)


# --- the twin --------------------------------------------------------------------------------------------------------


@kinds
@given(weights=groups(), bits=st.integers(1, 8))
@example(weights=[-64.0, 191.0], bits=8)  # the zero of the unaligned grid is a multiple: 64 of 255
@example(weights=[-1.0, 1.0], bits=8)
@example(weights=[-127.5, 127.5], bits=8)
@settings(max_examples=60, deadline=None)
def test_a_grid_is_that_of_the_exact_twin(spec, weights, bits):
    if bits == 1 and spec.zero in ALIGNMENTS:
        return  # refused: test_a_zero_that_nothing_can_be_aligned_to_is_refused
    ours, exact = minmax_grid(torch.tensor([weights]), bits, spec), grid_of(weights, bits, spec)
    scale, zero = ours.scale.item(), ours.zero.item()
    assert scale == pytest.approx(float(exact.scale), rel=2e-6)
    if spec.zero in ALIGNMENTS and zero != exact.zero:
        # Two multiples with one scale but for the last bits of float32.
        assert abs(zero - exact.zero) == 2 ** max(0, bits - ALIGNMENTS[spec.zero])
    elif spec.zero == "rounded" and zero != exact.zero:
        lowest = Fraction(min(weights)) / exact.scale
        assert abs(-lowest - Fraction(zero)) <= Fraction(1, 2) * (1 + Fraction(1, 10**6)) + abs(lowest) / 10**6
    else:
        # Where the range is small beside the weights, the zero is far away, and its float32 is coarse.
        assert zero == pytest.approx(float(exact.zero), rel=2e-6)


@pytest.mark.parametrize("headroom", get_args(Headroom))
def test_the_largest_code_is_the_largest_that_the_headrooms_slice_reads_as_it_is(headroom):
    spec = GridSpec(headroom=headroom)
    assert [top_code(bits, spec) for bits in range(1, 9)] == [largest_code(bits, spec) for bits in range(1, 9)]


def test_headroom_of_int8_ends_on_240_224_and_192():
    assert [top_code(8, GridSpec(headroom=headroom)) for headroom in get_args(Headroom)[1:]] == [240, 224, 192]


# --- an old grid -----------------------------------------------------------------------------------------------------

ROWS = torch.tensor([[-0.31, 0.11, 0.27, -0.05], [0.4, 0.55, 0.7, 0.41], [-1e-30, 3e-30, 0, 1e-30], [0.1] * 4])
RECORDED = {
    # (symmetric, dtype, bits): scales and zeros of the four rows, as they were before a zero had kinds
    (False, "float32", 8): (
        ["0x1.2a1fe4p-9", "0x1.34679ap-10", "0x1.45ca8ap-106", "0x1.99999ap-4"],
        ["0x1.109610p+7", "-0x1.540002p+8", "0x1.fep+5", "-0x1p+0"],
    ),
    (False, "bfloat16", 4): (
        ["0x1.3cp-5", "0x1.48p-6", "0x1.5ap-102", "0x1.9ap-4"],
        ["0x1.02p+3", "-0x1.4p+4", "0x1.ep+1", "-0x1p+0"],
    ),
    (False, "float16", 4): (
        ["0x1.3ccp-5", "0x1.47cp-6", "0x0p+0", "0x1.998p-4"],
        ["0x1.008p+3", "-0x1.4p+4", "inf", "-0x1p+0"],
    ),
    (True, "float32", 8): (
        ["0x1.3eaf54p-9", "0x1.67ce34p-8", "0x1.e8afdp-106", "0x1.9b34cep-11"],
        ["0x1p+7"] * 4,
    ),
    (True, "bfloat16", 4): (["0x1.52p-5", "0x1.7ep-4", "0x1.04p-101", "0x1.b4p-7"], ["0x1p+3"] * 4),
}


@pytest.mark.parametrize(("symmetric", "dtype", "bits"), [*RECORDED])
def test_a_grid_of_default_fields_has_the_bits_it_always_had(symmetric, dtype, bits):
    grid = minmax_grid(ROWS, bits, GridSpec(symmetric=symmetric, scale_dtype=dtype))
    recorded = RECORDED[symmetric, dtype, bits]
    for part, expected in zip(grid, recorded, strict=True):
        assert part.flatten().tolist() == [float.fromhex(text) for text in expected]


# --- the zero --------------------------------------------------------------------------------------------------------


@aligned
@dtypes
def test_weight_0_is_0_in_every_slice_down_to_that_of_an_aligned_zero(spec, dtype):
    spec = spec.model_copy(update={"group_size": 8, "scale_dtype": dtype})
    weight = weights(1)
    weight[:, ::8] = 0
    for bits in (2, 3, 4, 6, 8):
        grid = minmax_grid(weight, bits, spec)
        nested = nest(weight, grid, bits)
        for part in (part for part in EVERY_SLICE if part.bits < bits or part == Slice(bits)):
            read = nested.at(part).weight[:, ::8]
            if part.bits >= min(bits, ALIGNMENTS[spec.zero]):
                assert (read == 0).all(), (bits, part)
            else:  # narrower slices move it by half of their own step, or by a whole one where they clamp the zero
                assert (read.abs() < grid.scale * 2 ** (bits - part.bits)).all(), (bits, part)


def test_a_slice_narrower_than_its_aligned_zero_may_move_weight_0():
    weight = torch.tensor([[-112.0, 128.0, 0.0]])
    grid = minmax_grid(weight, 8, GridSpec(zero="aligned_int4", headroom="int4"))
    assert grid.zero.item() == 112
    read = {bits: nest(weight, grid, 8).at(Slice(bits)).weight[0, 2].item() for bits in (4, 3, 2)}
    assert read == {4: 0, 3: 16, 2: 16}


@aligned
@dtypes
def test_both_ends_of_a_group_lie_on_an_aligned_grid_as_it_is_stored(spec, dtype):
    for size in (1.0, 1e-4, 1e-30, 1e-44):
        weight = weights(2) * size
        grid = minmax_grid(weight, 8, spec.model_copy(update={"scale_dtype": dtype}))
        places = position(weight, grid)
        assert places.min() >= -1e-4, size
        assert places.max() <= top_code(8, spec) + 1e-4, size
        assert (grid.zero % 2 ** (8 - ALIGNMENTS[spec.zero]) == 0).all()


@aligned
@given(low=st.floats(-1, 0, width=32), high=st.floats(0, 1, width=32), bits=st.integers(2, 8))
@example(low=-1.0, high=2**-100, bits=8)  # beside the other end it is nothing, and yet it needs a code
@example(low=-(2**-100), high=1.0, bits=8)
@settings(max_examples=30, deadline=None)
def test_an_aligned_zero_makes_steps_wider_by_one_multiple_at_most(spec, low, high, bits):
    """A group that has both signs: T / (T - m) times its real grid, which is 1.07, 1.14 and 1.34 of int8."""
    if high - low < 1e-30:
        return
    top, multiple = top_code(bits, spec), 2 ** max(0, bits - ALIGNMENTS[spec.zero])
    ends = Range(torch.tensor([[low]]), torch.tensor([[high]]))
    ours, real = (grid_between(ends, bits, kind).scale.item() for kind in (spec, GridSpec(headroom=spec.headroom)))
    assert real * (1 - 1e-6) <= ours <= real * top / (top - multiple) * (1 + 1e-6)


@pytest.mark.parametrize("headroom", get_args(Headroom))
@dtypes
def test_a_rounded_zero_is_a_code_and_cuts_off_half_a_step_at_most_where_scales_are_exact(headroom, dtype):
    spec = GridSpec(zero="rounded", headroom=headroom, group_size=8, scale_dtype=dtype)
    weight = weights(3)
    weight[:, ::8] = 0  # a zero far from the codes would be coarse in a narrow dtype
    grid = minmax_grid(weight, 8, spec)
    assert torch.equal(grid.zero, grid.zero.round())
    error = (dequantize(quantize(weight, grid, 8), grid) - weight).abs().unflatten(1, (2, -1))
    # A scale rounded to bfloat16 moves an end by up to 255 / 256 of a step more, to float16 by an eighth of that.
    steps = {"float32": 0.5, "bfloat16": 1.5, "float16": 0.63}[dtype]
    assert (error <= steps * grid.scale.unsqueeze(-1) * (1 + 1e-4)).all()


# --- headroom --------------------------------------------------------------------------------------------------------


@kinds
def test_rounding_to_nearest_moves_no_weight_by_more_than_half_a_step(spec):
    weight = weights(4)
    for bits, group_size in itertools.product([2, 3, 4, 6, 8], [None, 4]):
        grid = minmax_grid(weight, bits, spec.model_copy(update={"group_size": group_size}))
        error = (dequantize(quantize(weight, grid, bits), grid) - weight).abs()
        assert (error.unflatten(1, (grid.scale.shape[1], -1)) <= 0.5 * grid.scale.unsqueeze(-1) * (1 + 1e-4)).all()


@pytest.mark.parametrize("zero", ["real", "rounded", "symmetric"])
@pytest.mark.parametrize(("headroom", "code"), [("int4", 240), ("int3", 224), ("int2", 192)])
def test_the_slice_of_the_headroom_reads_the_largest_weight_unclamped(zero, headroom, code):
    full = GridSpec(symmetric=True) if zero == "symmetric" else GridSpec(zero=zero)
    weight = weights(5)
    if zero == "symmetric":
        weight = weight.abs()
    grid = minmax_grid(weight, 8, full.model_copy(update={"headroom": headroom}))
    nested = nest(weight, grid, 8)
    assert (nested.codes.amax(1) == code).all()
    largest = weight.argmax(1, keepdim=True)
    read = nested.at(Slice(HEADROOMS[headroom])).weight.gather(1, largest)
    assert torch.allclose(read, weight.gather(1, largest), atol=0.5001 * grid.scale.max().item())
    # Without headroom the clamp of Eq. 6 makes it smaller by nearly a step of the slice.
    rival = nest(weight, minmax_grid(weight, 8, full), 8)
    clamped = rival.at(Slice(HEADROOMS[headroom])).weight.gather(1, largest)
    assert (clamped <= weight.gather(1, largest) - rival.grid.scale * (254 - code)).all()


@aligned
def test_no_code_of_an_aligned_grid_lies_above_its_headroom(spec):
    weight = weights(6)
    assert nest(weight, minmax_grid(weight, 8, spec), 8).codes.max() <= top_code(8, spec)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.headroom != "full"], ids=named)
def test_a_parent_no_wider_than_the_slice_has_nothing_to_leave_free(spec):
    for bits in range(2, HEADROOMS[spec.headroom] + 1):
        ours = minmax_grid(weights(7), bits, spec)
        full = minmax_grid(weights(7), bits, spec.model_copy(update={"headroom": "full"}))
        assert torch.equal(ours.scale, full.scale)
        assert torch.equal(ours.zero, full.zero)


# --- odd groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", KINDS, ids=named)
def test_a_group_of_equal_weights_is_kept_exactly_in_every_slice(spec):
    for value, bits in itertools.product([0.0, 3.0, -3.0, 0.1, 1e-30, -1e30], [2, 4, 8]):
        weight = torch.full((2, 8), value)
        nested = nest(weight, minmax_grid(weight, bits, spec), bits)
        for part in (part for part in EVERY_SLICE if part.bits < bits or part == Slice(bits)):
            assert torch.equal(nested.at(part).weight, weight), (value, bits, part)


@kinds
@dtypes
def test_what_training_sees_is_what_is_stored(tmp_path, spec, dtype):
    spec = spec.model_copy(update={"group_size": 8, "scale_dtype": dtype})
    weight = weights(8)
    clipping = LearnableClipping(weight, 8, spec, 1.0)
    nested = nest(weight, clipping(), 8)
    save_layers(tmp_path / "layers.safetensors", {"layer": nested}, scale_dtype=dtype)
    stored = load_layers(tmp_path / "layers.safetensors")["layer"]
    trained = read_slices(weight, clipping(), EVERY_SLICE, parent_bits=8)
    assert all(torch.equal(trained[part], stored.at(part).weight) for part in EVERY_SLICE)


@pytest.mark.parametrize("zero", ALIGNMENTS)
def test_an_aligned_grid_of_tiny_weights_is_finite_in_float16(zero):
    weight = weights(9) * 1e-30
    grid = minmax_grid(weight, 8, GridSpec(zero=zero, scale_dtype="float16"))
    assert (grid.scale > 0).all()
    assert (dequantize(quantize(weight, grid, 8), grid) - weight).abs().max() < 1e-29


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", KINDS, ids=named)
@given(seed=st.integers(0, 10_000), init=st.floats(-1, 4), reach=st.sampled_from([1.0, 1.5]))
@settings(max_examples=8, deadline=None)
def test_values_and_gradients_equal_the_twin_spelled_with_autograd(spec, seed, init, reach):
    spec = spec.model_copy(update={"group_size": 8})
    weight = weights(seed, rows=4) / 2
    weight[:, ::8], weight[:, 1::8] = -0.7, 0.9  # both signs in every group
    clipping = LearnableClipping(weight, 8, spec, init, reach)
    with torch.no_grad():  # ends that differ
        less = torch.rand(clipping.low_logit.shape, generator=torch.Generator().manual_seed(seed))
        clipping.low_logit.sub_(0.3 * less)
    weight.requires_grad_()
    trained = [weight, *clipping.parameters()]
    parts = [Slice(8), Slice(4), Slice(3), Slice(2), Slice(2, extra_precision=True)]
    low, high = clipping.factors()
    ends = Range(low * clipping.ends.low, high * clipping.ends.high)
    ours, twin = clipping(), trained_grid(ends, 8, spec)
    assert torch.equal(ours.scale, twin.scale)
    assert torch.equal(ours.zero, twin.zero)
    upstream = torch.randn(len(parts), *weight.shape, generator=torch.Generator().manual_seed(seed))

    def gradients(read):
        return torch.autograd.grad((torch.stack([*read]) * upstream).sum(), trained)

    fast = gradients(read_slices(weight, ours, parts, parent_bits=8).values())
    slow = gradients([read_slice(weight, twin, part, parent_bits=8) for part in parts])
    for one, other in zip(fast, slow, strict=True):
        # Both are sums of some 40 float32 products in different orders.
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@dtypes
def test_the_end_that_binds_an_aligned_scale_has_all_of_its_gradient(dtype):
    ends = Range(torch.tensor([[-1.0, -1.0]], requires_grad=True), torch.tensor([[1.2, 2.9]], requires_grad=True))
    grid = grid_between(ends, 8, GridSpec(zero="aligned_int2", scale_dtype=dtype))
    assert grid.zero.tolist() == [[128, 64]]
    low, high = torch.autograd.grad(grid.scale.sum(), [*ends])
    assert torch.allclose(low, torch.tensor([[0.0, -1 / 64]]))
    assert torch.allclose(high, torch.tensor([[1 / 127, 0.0]]))
    assert not grid.zero.requires_grad


# --- who uses grids --------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
def test_gptq_of_inputs_without_correlation_rounds_to_nearest_on_the_same_grid(spec, act_order, group_size):
    spec = spec.model_copy(update={"group_size": group_size})
    weight, base = weights(10), GPTQBase(kind="gptq", act_order=act_order)
    solution = solve(weight, torch.eye(16), objective=Objective.parse(8, {"int8": 1.0}), spec=spec, base=base)
    expected = nest(weight, minmax_grid(weight, 8, spec), 8)
    assert torch.equal(solution.grid.scale, expected.grid.scale)
    assert torch.equal(solution.grid.zero, expected.grid.zero)
    assert torch.equal(solution.codes, expected.codes)


@kinds
def test_a_layer_in_training_reads_what_its_stored_codes_will_read(spec):
    linear = nn.Linear(16, 6, bias=False)
    linear.weight.data = weights(11)
    layer = NestedLinear(linear, LearnableClipping(linear.weight, 8, spec, 4.0, reach=1.5))
    stored = nest(linear.weight, layer.grid(), 8)
    for part in EVERY_SLICE:
        with read_at(layer, part):
            assert torch.equal(layer.weight, stored.at(part).weight)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_zero_that_nothing_can_be_aligned_to_is_refused(tiny_study):
    words = ["base=minmax", "bits.parent_bits=1", "bits.widths=[int1]"]
    with pytest.raises(UserError, match=r"an int1 parent has two codes in all; set grid\.zero=real or "):
        _ = tiny_study(*words, "grid.zero=aligned_int2").cells
    for zero in ("real", "rounded"):
        assert tiny_study(*words, f"grid.zero={zero}").cells


@pytest.mark.parametrize("zero", ["rounded", *ALIGNMENTS])
def test_a_symmetric_grid_leaves_no_other_zero(tiny_study, zero):
    words = ["base=minmax", "bits=int8", "grid.symmetric=true"]
    with pytest.raises(UserError, match=rf"grid\.zero={zero} nothing to choose; set grid\.zero=real or grid\.symm"):
        _ = tiny_study(*words, f"grid.zero={zero}").cells
    assert tiny_study(*words, "grid.zero=real").cells
    assert tiny_study(*words, "grid.symmetric=false", f"grid.zero={zero}").cells


@pytest.mark.parametrize("word", ["grid.zero=aligned", "grid.headroom=int8", "grid.zero=null"])
def test_a_kind_that_does_not_exist_is_answered_with_those_that_do(tiny_study, word):
    choices = r"'real', 'rounded', 'aligned_int4'" if "zero" in word else r"'full', 'int4', 'int3' or 'int2'"
    with pytest.raises(UserError, match=choices):
        _ = tiny_study("base=minmax", "bits=int8", word).cells
