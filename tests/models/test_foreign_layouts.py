"""The layouts of foreign models against their slow twins, weight by weight, for files of random bits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from matquant.errors import UserError
from matquant.models.foreign.codebooks import any_bcq_weight, any_precision_weight, bitsandbytes_weight
from matquant.models.foreign.integers import HQQ_TOGETHER, awq_weight, gptq_weight, hqq_weight, unpacked
from reference import foreign_reference as slow
from tests.foreign import any_precision_planes, packed_words

HALF = 2**31


def words(*shape: int, seed: int = 0) -> Tensor:
    """Words of random bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-HALF, HALF, shape, generator=generator).to(torch.int32)


def halves(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) / 64).half()


def matrix(rows: int, columns: int, weight) -> Tensor:
    values = [[weight(of_output=row, of_input=column) for column in range(columns)] for row in range(rows)]
    return torch.tensor(values, dtype=torch.float64).float()


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_cross_from_word_to_word(bits):
    codes = torch.randint(0, 2**bits, (3, 64), generator=torch.Generator().manual_seed(bits))
    assert torch.equal(unpacked(packed_words(codes.to(torch.uint8), bits), bits)[:, :64], codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_keeps_zeros_less_one_and_inputs_in_any_group(bits):
    outputs, inputs, groups = 32, 32, 4
    tensors = {
        "qweight": words(inputs * bits // 32, outputs),
        "qzeros": words(groups, outputs * bits // 32, seed=2),
        "scales": halves(groups, outputs),
        "g_idx": torch.randint(0, groups, (inputs,), generator=torch.Generator().manual_seed(3)).int(),
    }
    lists = [one.tolist() for one in tensors.values()]

    def weight(of_output: int, of_input: int) -> float:
        return slow.gptq_weight(*lists, bits=bits, of_output=of_output, of_input=of_input)

    assert torch.equal(gptq_weight(tensors, {}, bits), matrix(outputs, inputs, weight))
    # The second layout stores zeros as they are.
    later = gptq_weight(tensors, {"checkpoint_format": "gptq_v2"}, bits)
    step = tensors["scales"].float().T[:, tensors["g_idx"].long()]
    apart = ((later - gptq_weight(tensors, {}, bits)) / step).round()
    assert set(apart.unique().tolist()) <= {1.0, 1.0 - 2**bits}


def test_gptq_without_an_order_has_groups_of_neighbours():
    tensors = {"qweight": words(4, 8), "qzeros": words(2, 1, seed=2), "scales": halves(2, 8)}
    ordered = {**tensors, "g_idx": torch.arange(32).int() // 16}
    assert torch.equal(gptq_weight(tensors, {}, 4), gptq_weight(ordered, {}, 4))


def test_awq_has_an_order_of_its_own():
    tensors = {"qweight": words(32, 2), "qzeros": words(2, 2, seed=2), "scales": halves(2, 16)}
    lists = [one.tolist() for one in tensors.values()]

    def weight(of_output: int, of_input: int) -> float:
        return slow.awq_weight(*lists, group_size=16, of_output=of_output, of_input=of_input)

    assert torch.equal(awq_weight(tensors, {}, 4), matrix(16, 32, weight))


def of_groups(size: int, inputs: int, outputs: int, *, awq: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A layer whose last group may be shorter, and its weights by the slow twin, which is told the groups."""
    groups = -(-inputs // size)
    tensors = {"qweight": words(inputs, outputs // 8) if awq else words(inputs // 8, outputs)}
    tensors |= {"qzeros": words(groups, outputs // 8, seed=2), "scales": halves(groups, outputs)}
    lists, g_idx = [one.tolist() for one in tensors.values()], [column // size for column in range(inputs)]

    def weight(of_output: int, of_input: int) -> float:
        if awq:
            return slow.awq_weight(*lists, group_size=size, of_output=of_output, of_input=of_input)
        return slow.gptq_weight(*lists, g_idx, bits=4, of_output=of_output, of_input=of_input)

    return tensors, matrix(outputs, inputs, weight)


@pytest.mark.parametrize("read", [gptq_weight, awq_weight])
def test_groups_are_as_configured_and_the_last_may_be_shorter(read):
    for size, inputs in ((32, 48), (16, 48), (48, 48), (32, 80)):
        tensors, expected = of_groups(size, inputs, 16, awq=read is awq_weight)
        assert torch.equal(read(tensors, {"group_size": size}, 4), expected)
        if inputs % size == 0:  # no other size gives these shapes, to whoever knows that all groups are of one
            assert torch.equal(read(tensors, {"group_size": -1 if size == inputs else None}, 4), expected)


@pytest.mark.parametrize("read", [gptq_weight, awq_weight])
def test_groups_of_a_size_that_nothing_tells_are_refused(read):
    tensors, _ = of_groups(32, 80, 16, awq=read is awq_weight)
    with pytest.raises(UserError, match=r"a.b has 3 groups for 80 inputs, .*group_size=16.*set the group_size"):
        read(tensors, {"group_size": 16, "layer": "a.b"}, 4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_hqq_packs_rows_of_groups(bits):
    rows, columns, size = 8, 40, 20
    packing = {1: "1bit_u8", 2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 8: "8bit_u8"}[bits]
    together = HQQ_TOGETHER[packing]
    groups = rows * columns // size
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 2 ** (bits * together), (-(-groups // together), size), generator=generator)
    tensors = {
        "W_q": packed.to(torch.int32 if bits == 3 else torch.uint8),
        "scale": halves(groups, 1),
        "zero": torch.rand(groups, 1, generator=generator).half(),
        "packing": torch.tensor([ord(letter) for letter in packing], dtype=torch.uint8),
        "shape": torch.tensor([rows, columns]),
        "group_size": torch.tensor(size),
        "axis": torch.tensor(1),
    }
    packed_rows, scale, zero = (tensors[name].tolist() for name in ("W_q", "scale", "zero"))

    def weight(of_output: int, of_input: int) -> float:
        place = of_output, of_input
        return slow.hqq_weight(packed_rows, scale, zero, bits, together, size, columns, place=place)

    assert torch.allclose(hqq_weight(tensors, {}, bits), matrix(rows, columns, weight), rtol=1e-6)


def test_hqq_codes_that_are_viewed_as_real_numbers_are_no_codes():
    with pytest.raises(ValueError, match="view_as_float"):
        hqq_weight({"W_q": torch.zeros(4, 4), "shape": torch.tensor([4, 4])}, {}, 8)


def test_bitsandbytes_lays_codes_out_along_the_flattened_matrix():
    rows, columns, block = 4, 24, 32  # blocks that cross from row to row
    state = b'{"blocksize": 32, "shape": [4, 24]}'
    tensors = {
        "weight": torch.randint(0, 256, (rows * columns // 2, 1), generator=torch.Generator().manual_seed(0)),
        "weight.absmax": halves(rows * columns // block).float(),
        "weight.quant_map": torch.linspace(-1, 1, 16),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor([*state], dtype=torch.uint8),
    }
    tensors["weight"] = tensors["weight"].to(torch.uint8)
    lists = [tensors[name].flatten().tolist() for name in ("weight", "weight.quant_map", "weight.absmax")]

    def weight(of_output: int, of_input: int) -> float:
        return slow.bitsandbytes_weight(*lists, block=block, columns=columns, place=(of_output, of_input))

    assert torch.allclose(bitsandbytes_weight(tensors, {}, 4), matrix(rows, columns, weight), rtol=1e-6)


@pytest.mark.parametrize(("inputs", "bits"), [(32, 3), (96, 4), (1024, 3), (1088, 2)])
def test_any_precision_deals_the_bytes_of_a_plane_to_threads(inputs, bits):
    planes, table = words(4, 2, inputs // 32), halves(2, 2**bits)
    lists = planes.tolist(), table.tolist()

    def weight(of_output: int, of_input: int) -> float:
        return slow.any_precision_weight(*lists, bits, of_output=of_output, of_input=of_input)

    read = any_precision_weight({"qweight": planes, f"lut{bits}": table}, {}, bits)
    assert torch.equal(read, matrix(2, inputs, weight))


@pytest.mark.parametrize(("inputs", "bits"), [*product((32, 1024, 1120), (3, 4, 5))])
def test_any_precision_reads_the_first_bits_of_the_codes_that_were_packed(inputs, bits):
    codes = np.random.default_rng(0).integers(0, 32, (3, inputs))
    table = torch.arange(2**bits).float().expand(3, -1).half()
    read = any_precision_weight({"qweight": any_precision_planes(codes, 5), f"lut{bits}": table}, {}, bits)
    assert torch.equal(read, torch.from_numpy(codes >> (5 - bits)).float())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_any_bcq_adds_a_scale_for_each_set_bit_and_subtracts_it_for_others(bits):
    inputs, outputs, size = 64, 3, 16
    tensors = {
        "qweight": words(inputs // 32, 4, outputs),
        f"alpha_{bits}": halves(inputs // size, bits, outputs),
        f"beta_{bits}": halves(inputs // size, outputs),
    }
    lists = [one.tolist() for one in tensors.values()]

    def weight(of_output: int, of_input: int) -> float:
        return slow.any_bcq_weight(*lists, bits=bits, group_size=size, of_output=of_output, of_input=of_input)

    assert torch.allclose(any_bcq_weight(tensors, {}, bits), matrix(outputs, inputs, weight), rtol=1e-5, atol=1e-8)
