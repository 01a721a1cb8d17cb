"""A base and its residual: every code comes back, and its bits are counted."""

from __future__ import annotations

import pytest
import torch

from matquant.codes.base_residual import join, split, stored_bits
from matquant.codes.overflow_list import list_bits
from matquant.codes.slicing import slice_codes
from matquant.notation import Slice

WIDTHS = [(bits, parent) for parent in range(1, 9) for bits in range(1, parent + 1)]


@pytest.mark.parametrize(("bits", "parent"), WIDTHS)
def test_every_code_comes_back_from_its_base_and_residual(bits, parent):
    codes, part = torch.arange(2**parent), Slice(bits)
    parts = split(codes, part, parent_bits=parent)
    assert join(parts, part, parent_bits=parent).tolist() == codes.tolist()
    assert parts.base.max().item() < 2**bits
    assert parts.residual.max().item() < 2 ** (parent - bits)


@pytest.mark.parametrize(("bits", "parent"), WIDTHS)
def test_the_base_is_the_slice_and_what_is_clamped_is_the_overflow(bits, parent):
    codes, part = torch.arange(2**parent), Slice(bits)
    parts = split(codes, part, parent_bits=parent)
    read = slice_codes(codes, part, parent_bits=parent)
    assert (parts.base.int() << (parent - bits)).tolist() == read.tolist()
    if bits < parent:
        unclamped = slice_codes(codes, Slice(bits, extra_precision=True), parent_bits=parent)
        assert parts.clamped.tolist() == (unclamped > read).tolist()
    else:
        assert not parts.clamped.any()


def test_a_residual_that_is_not_clamped_reaches_half_a_step():
    codes = torch.arange(256)
    parts = split(codes, Slice(4), parent_bits=8)
    apart = (codes - 16 * parts.base.int())[~parts.clamped]
    assert (apart.min().item(), apart.max().item()) == (-8, 7)


def test_bits_are_those_of_the_parts_and_of_the_list_of_clamped_weights():
    bits = stored_bits(Slice(4), parent_bits=8, num_weights=1000, num_clamped=30)
    assert (bits.base, bits.planes_of_slice, bits.planes, bits.apart) == (4, 5, 8, 12)
    assert bits.base_and_residual == pytest.approx(8 + list_bits(1000, 30) / 1000)
    assert stored_bits(Slice(8), parent_bits=8, num_weights=1000, num_clamped=0).base_and_residual == 8
