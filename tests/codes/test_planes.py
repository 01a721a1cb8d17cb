"""Bit planes: every slice of every code out of its first planes, and a slice's own steps, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matquant.codes.nested import NestedWeight, Transform
from matquant.codes.planes import planes_needed, sliced_planes, to_planes, top_bits
from matquant.codes.quantizers import Grid
from matquant.codes.sliced import sliced
from matquant.codes.slicing import slice_codes
from matquant.notation import Slice

SLICES = [
    (parent, Slice(bits, extra_precision=extra))
    for parent in range(2, 9)
    for bits in range(1, parent + 1)
    for extra in (False, True)
    if not (extra and bits == parent)
]


@pytest.mark.parametrize(("parent", "part"), SLICES, ids=lambda value: str(value))
def test_every_code_is_sliced_out_of_its_first_planes(parent, part, device):
    codes = torch.arange(2**parent, dtype=torch.uint8, device=device).repeat(3, 1)
    planes = to_planes(codes, parent)
    needed = planes_needed(part, parent)
    assert needed == min(part.bits + 1, parent)
    read = sliced_planes(planes[:needed], part, parent_bits=parent, columns=codes.shape[1])
    steps = slice_codes(codes, part, parent_bits=parent) >> (parent - part.bits)
    assert torch.equal(read.short(), steps)


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    bits=st.integers(1, 8),
    data=st.integers(0, 2**31),
    depth=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_planes_of_any_shape_are_the_bits_of_the_codes(rows, columns, bits, data, depth):
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(data)).to(torch.uint8)
    planes = to_planes(codes, bits)
    assert [tuple(plane.shape) for plane in planes] == [(rows, -(-columns // 8))] * bits
    some = depth.draw(st.integers(1, bits))
    assert torch.equal(top_bits(planes[:some], columns), codes >> (bits - some))
    # Written out: bit after bit, the first input in the highest bit of the first byte.
    for number, plane in enumerate(planes):
        for row in range(rows):
            bit = lambda column: int(codes[row, column]) >> (bits - 1 - number) & 1  # noqa: B023, E731
            spelled = sum(bit(column) << (7 - column) for column in range(min(8, columns)))
            assert int(plane[row, 0]) == spelled


@pytest.mark.parametrize("group_size", [8, 32])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transform", ["none", "scale", "shift"])
def test_a_slice_in_steps_of_its_own_is_the_same_weights_to_the_last_bit(group_size, scale_dtype, transform, device):
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (16, 64), generator=draw).to(torch.uint8)
    groups = 64 // group_size
    scale = (torch.rand(16, groups, generator=draw) * 10 ** torch.randint(-6, 3, (16, groups), generator=draw)).to(
        scale_dtype
    )
    scale[0, 0] = torch.finfo(scale_dtype).tiny  # the smallest scale that is not rounded away
    zero = (300 * torch.rand(16, groups, generator=draw) - 20).to(scale_dtype)
    made = None
    if transform != "none":
        shift, bias = (torch.randn(64, generator=draw), torch.randn(16, generator=draw))
        made = Transform(
            torch.rand(64, generator=draw) + 0.5, *((shift, bias) if transform == "shift" else (None, None))
        )
    nested = NestedWeight(codes, Grid(scale.float(), zero.float()), 8, made).to(device)
    for parent, part in SLICES:
        if parent == 8:
            ours, theirs = sliced(nested, part).affine(), nested.at(part)
            assert torch.equal(ours.weight, theirs.weight), part
            assert (ours.bias is None) == (theirs.bias is None)
            assert ours.bias is None or torch.equal(ours.bias, theirs.bias)
