"""Codes on uniform grids, as GPTQ, AWQ and HQQ pack them: weights are scale * (code - zero).

GPTQ keeps the codes of an input channel side by side in 32-bit words along the inputs, lowest bits first and without
gaps, so that codes of three bits cross from word to word; zeros likewise along the outputs.  Its first layout stores
every zero less one, which wraps: zero 0 is stored as the top code.  The second, gptq_v2, stores it as it is.  `g_idx`
is the group of each input, which with act_order (desc_act) is not that of its neighbours.

AWQ packs along the outputs, eight codes to a word in the order 0, 2, 4, 6, 1, 3, 5, 7.

HQQ takes rows of groups (axis 1) or columns (axis 0) as rows of a matrix and packs several of those, the first in the
highest bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Int32, Integer
from torch import Tensor

from matquant.errors import UserError

WORD = 32
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in a word of each of eight outputs."""
HQQ_TOGETHER = {"8bit_u8": 1, "4bit_u8": 2, "3bit_32": 10, "2bit_u8": 4, "1bit_u8": 8}
"""The rows that HQQ packs into one."""

Tensors = Mapping[str, Tensor]
Facts = Mapping[str, Any]


def unpacked(words: Int32[Tensor, "rows words"], bits: int) -> Int[Tensor, "rows codes"]:
    """The codes that lie in the words of each row, lowest bits first and without gaps."""
    if WORD % bits == 0:  # a fraction of the memory
        places = torch.arange(0, WORD, bits, device=words.device)
        return (words.unsqueeze(-1) >> places).bitwise_and_((1 << bits) - 1).flatten(1)
    places = torch.arange(WORD, device=words.device)
    stream = (words.unsqueeze(-1) >> places).bitwise_and_(1).flatten(1)
    stream = stream[:, : stream.shape[1] // bits * bits].unflatten(1, (-1, bits))
    return (stream << torch.arange(bits, device=words.device)).sum(-1)


def gptq_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of GPTQ, of either layout."""
    codes, scales = unpacked(tensors["qweight"].T.contiguous(), bits), tensors["scales"].float()
    zeros = unpacked(tensors["qzeros"], bits)[:, : scales.shape[1]]
    if facts.get("checkpoint_format") != "gptq_v2":
        zeros = (zeros + 1) % (1 << bits)
    groups, columns = len(scales), codes.shape[1]
    if "g_idx" in tensors:
        group = tensors["g_idx"].long()
        group = torch.where(group < 0, group + groups, group)
    else:
        group = torch.arange(columns) // _group_size(facts, columns, groups)
    return (codes - zeros.T[:, group]) * scales.T[:, group]


def awq_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of AWQ's gemm layout."""
    scales = tensors["scales"].float()
    codes = _awq_order(unpacked(tensors["qweight"], bits))
    zeros = _awq_order(unpacked(tensors["qzeros"], bits))
    group = torch.arange(len(codes)) // _group_size(facts, len(codes), len(scales))
    return ((codes - zeros[group]) * scales[group]).T.contiguous()


def _group_size(facts: Facts, columns: int, groups: int) -> int:
    """The inputs of a group: as configured, where the last group may be shorter, else as shapes alone say it."""
    size = facts.get("group_size", facts.get("q_group_size"))
    if isinstance(size, int) and size > 0 and -(-columns // size) == groups:
        return size
    if columns % groups:
        raise UserError(
            f"{facts.get('layer', 'a layer')} has {groups} groups for {columns} inputs, and its configuration says "
            f"group_size={size}, which does not tell where each begins; set the group_size that it was quantized with "
            "in config.json"
        )
    return columns // groups


def _awq_order(codes: Integer[Tensor, "rows out"]) -> Integer[Tensor, "rows out"]:
    order = torch.tensor(AWQ_ORDER, device=codes.device)
    return codes.unflatten(1, (-1, len(AWQ_ORDER)))[:, :, order].flatten(1)


def hqq_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of HQQ, whose every setting lies beside it in the file."""
    packing = bytes(tensors["packing"].tolist()).decode() if "packing" in tensors else f"{bits}bit_u8"
    if tensors["W_q"].is_floating_point():
        raise ValueError("its W_q is a view of its codes as real numbers (view_as_float)")
    rows, columns = (int(length) for length in tensors["shape"])
    size, axis = int(tensors["group_size"]), int(tensors["axis"])
    codes = _hqq_codes(tensors["W_q"], bits, HQQ_TOGETHER[packing])
    num_rows = rows * columns // size if axis == 1 else size  # three bits: rows that fill the last number up
    values = (codes[:num_rows] - tensors["zero"].float()) * tensors["scale"].float()
    return values.reshape(rows, columns)


def _hqq_codes(packed: Tensor, bits: int, together: int) -> Integer[Tensor, "rows columns"]:
    packed = packed.to(torch.int64)
    places = range(bits * (together - 1), -1, -bits)
    return torch.cat([packed >> place & ((1 << bits) - 1) for place in places])
