"""Eq. 6 and Eq. 8, exhaustively: 256 codes is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from matquant.codes.slicing import slice_codes
from matquant.notation import Slice
from reference.slicing_reference import slice_code

CODES = torch.arange(256, dtype=torch.uint8)
WIDTHS = [Slice(bits, extra) for bits in range(1, 9) for extra in (False, True) if not (extra and bits == 8)]
GOLDEN = Path(__file__).parents[1] / "golden" / "slices.json"  # renewed by: python -m tests.golden.renew


def test_shapes_and_types_of_signatures_are_checked_while_tests_run():
    with pytest.raises(TypeCheckError, match="slice_codes"):
        slice_codes(CODES.float(), Slice(4), parent_bits=8)


def read(part: Slice) -> list[int]:
    return slice_codes(CODES, part, parent_bits=8).tolist()


@pytest.mark.parametrize("part", WIDTHS, ids=str)
def test_every_code_at_every_width_is_what_was_recorded(part):
    assert read(part) == json.loads(GOLDEN.read_text())[str(part)]


@pytest.mark.parametrize("parent_bits", range(1, 9))
def test_every_code_of_every_parent_equals_the_equation_in_exact_fractions(parent_bits):
    codes = torch.arange(2**parent_bits, dtype=torch.uint8)
    for bits in range(1, parent_bits + 1):
        for extra in (False, True) if bits < parent_bits else (False,):
            expected = [slice_code(q, bits, parent_bits=parent_bits, extra_precision=extra) for q in range(len(codes))]
            assert slice_codes(codes, Slice(bits, extra), parent_bits=parent_bits).tolist() == expected


@pytest.mark.parametrize("rule", ["floor", "centre"])
@pytest.mark.parametrize("parent_bits", range(1, 9))
def test_every_code_by_every_other_rule_equals_its_definition(parent_bits, rule):
    codes = torch.arange(2**parent_bits, dtype=torch.uint8)
    for bits in range(1, parent_bits + 1):
        expected = [
            slice_code(q, bits, parent_bits=parent_bits, extra_precision=False, rule=rule) for q in range(len(codes))
        ]
        assert slice_codes(codes, Slice(bits, rule=rule), parent_bits=parent_bits).tolist() == expected


def test_plain_truncation_is_not_eq_6():
    half_up, floor, centre = (read(Slice(2, rule=rule)) for rule in ("half_up", "floor", "centre"))
    assert (half_up[31:33], floor[31:33], centre[31:33]) == ([0, 64], [0, 0], [32, 32])
    assert (
        sum(a != b for a, b in zip(half_up, floor, strict=True)) == 96
    )  # the upper halves of all buckets but the last


def test_the_papers_worked_examples():
    int2 = read(Slice(2))
    assert int2[53] == 64  # bucket 1
    assert int2[240] == int2[234] == 192  # bucket 4, clamped to 3


@pytest.mark.parametrize("part", WIDTHS, ids=str)
def test_slices_are_monotone_and_have_as_many_values_as_the_width_allows(part):
    values = read(part)
    assert values == sorted(values)
    assert len(set(values)) == 2**part.bits + part.extra_precision


def test_slicing_in_two_steps_differs_on_exactly_24_codes():
    once = slice_codes(CODES, Slice(2), parent_bits=8)
    twice = slice_codes(slice_codes(CODES, Slice(4), parent_bits=8), Slice(2), parent_bits=8)
    assert int((once != twice).sum()) == 24


@pytest.mark.parametrize(("bits", "moved"), [(2, 2), (3, 4), (4, 8), (6, 32)])
def test_rounding_half_to_even_would_move_the_codes_that_the_paper_does_not(bits, moved):
    step = 2 ** (8 - bits)
    half_even = (torch.round(CODES / step).clamp(max=2**bits - 1) * step).to(torch.int16)
    assert int((half_even != slice_codes(CODES, Slice(bits), parent_bits=8)).sum()) == moved


def test_the_overflow_bucket_of_extra_precision_survives_where_uint8_would_wrap():
    sliced = slice_codes(CODES, Slice(2, extra_precision=True), parent_bits=8)
    assert sliced[255] == 256
    assert sorted(set(sliced.tolist())) == [0, 64, 128, 192, 256]


def test_the_codes_that_are_read_are_not_changed(device):
    codes = CODES.clone().to(device)
    for part in WIDTHS:
        slice_codes(codes, part, parent_bits=8)
    assert torch.equal(codes.cpu(), CODES)
