"""Codes that stand for values of a table: bitsandbytes' 4 bits, any-precision's rows, AnyBCQ's sums of signs.

any-precision (arXiv:2402.10517) stores bit planes, most significant first, and for each width a table for each row: the
first r planes are the place in the r-bit table.  So widths are nested in their codes and not in their values.  A plane
is packed for a kernel, four bytes to a thread: of every 1024 inputs, or of as many as are left, thread t has the byte t
of each quarter, the first quarter in its highest byte, and the first input of a byte in its highest bit.

AnyBCQ (binary codes) stores a plane of signs for each bit and, for each width, a scale for each plane and a shift:
w = beta + sum of +-alpha over the first r planes.  A word holds 32 inputs of one output, the first in the lowest bit.

bitsandbytes keeps blocks of codes, the first of a byte in its upper half, in the order of the flattened matrix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

WORD, WARP = 32, 1024
"""Inputs of a word, and of the words of one warp."""
INT8 = 7.874015718698502e-3
"""1 / 127, as bitsandbytes rounds it: the scale of int8 is that of the code 127."""
QUANT_STATE = "weight.quant_state.bitsandbytes__"

Tensors = Mapping[str, Tensor]
Facts = Mapping[str, Any]


def any_precision_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of any-precision at one of its widths."""
    table, places = tensors[f"lut{bits}"].float(), 0
    for plane in tensors["qweight"][:bits]:
        places = places * 2 + any_precision_plane(plane).long()
    assert isinstance(places, Tensor)
    return table.gather(1, places)


def any_precision_plane(words: Int32[Tensor, "out words"]) -> Bool[Tensor, "out in"]:
    """The bits of a plane in the order of the inputs."""
    num_words = words.shape[1]
    full = num_words * WORD // WARP * (WARP // WORD)
    parts = [*words[:, :full].split(WARP // WORD, dim=1)] if full else []
    if full < num_words:
        parts.append(words[:, full:])
    places = torch.arange(WORD - 1, -1, -1, device=words.device)
    # [out, threads, 4 quarters, 8 bits]: the quarter comes first in the order of the inputs.
    bits = [(part.unsqueeze(-1) >> places & 1).unflatten(-1, (4, 8)).transpose(1, 2).flatten(1) for part in parts]
    return torch.cat(bits, dim=1).bool()


def any_bcq_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of AnyBCQ at one of its widths."""
    alpha, beta = tensors[f"alpha_{bits}"].float(), tensors[f"beta_{bits}"].float()
    words = tensors["qweight"][:, :bits].unsqueeze(1)
    signs = (words >> torch.arange(WORD, device=words.device)[:, None, None] & 1).mul_(2).sub_(1)
    signs = signs.flatten(0, 1)  # [in, bits, out]
    if len(signs) % len(beta):
        raise ValueError(f"its {len(signs)} inputs are in {len(beta)} groups, which are not of one size")
    repeats = len(signs) // len(beta)
    weight = (signs * alpha.repeat_interleave(repeats, 0)).sum(1) + beta.repeat_interleave(repeats, 0)
    return weight.T.contiguous()


def bitsandbytes_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of bitsandbytes: nf4 and fp4 by the table in the file, or int8 with a scale for each row."""
    if bits == 8:
        return tensors["weight"].float() * tensors["SCB"].float().unsqueeze(1) * INT8
    key = next(name for name in tensors if name.startswith(QUANT_STATE))
    state = json.loads(bytes(tensors[key].tolist()))
    packed = tensors["weight"].flatten().view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()
    largest = tensors["weight.absmax"]
    if "weight.nested_absmax" in tensors:
        scale = tensors["weight.nested_absmax"].float().repeat_interleave(int(state["nested_blocksize"]))
        largest = tensors["weight.nested_quant_map"].float()[largest.long()] * scale[: len(largest)]
        largest = largest + float(state["nested_offset"])
    rows, columns = (int(length) for length in state["shape"])
    scale = largest.float().repeat_interleave(int(state["blocksize"]))[: rows * columns]
    values = tensors["weight.quant_map"].float()[codes[: rows * columns].long()] * scale
    return values.reshape(rows, columns)
