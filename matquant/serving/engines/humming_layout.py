"""The layout of vLLM's Humming kernels: a dense stream of r-bit codes, scales, and zeros that are no integers.

    <layer>.weight        int32 [out, in * r / 32]   code i of a row lies in bits i * r ... of the row's stream,
                                                     least significant first, over the borders of words
    <layer>.weight_scale  [out, groups]              in the dtype that the model is served in
    <layer>.zero_point    [out, groups]              the same; a weight is (code - zero_point) * weight_scale

(`humming.schema.HummingWeightSchema` and `pack_weight.cuh` in humming-kernels 0.1.19.)  Nothing here needs vLLM.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from matquant.codes.sliced import SlicedWeight

METHOD = "humming"
WORD = 32
"""The bits of a word: a row holds a whole number of them at every width if its inputs are a multiple of this."""
SMALLEST_GROUP = 16
"""The smallest group of inputs with a scale of its own that the kernels multiply."""


def pack(codes: UInt8[Tensor, "out in"], bits: int) -> Int32[Tensor, "out words"]:
    """Rows of codes as streams of bits, in words of 32."""
    words = torch.zeros(codes.shape[0], codes.shape[1] // WORD, bits, dtype=torch.int64, device=codes.device)
    for number, code in enumerate(codes.to(torch.int64).unflatten(1, (-1, WORD)).unbind(-1)):
        word, shift = divmod(number * bits, WORD)
        words[..., word] |= code << shift & 0xFFFFFFFF
        if shift + bits > WORD:
            words[..., word + 1] |= code >> (WORD - shift)
    return words.flatten(1).to(torch.int32)


def tensors_of(weight: SlicedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer, by what follows its name."""
    return {
        "weight": pack(weight.codes, weight.num_bits),
        "weight_scale": weight.grid.scale.to(dtype).contiguous(),
        "zero_point": weight.grid.zero.to(dtype).contiguous(),
    }


def schema_of(bits: int, group_size: int | None) -> dict[str, Any]:
    """The words in which a configuration describes such a layer; without groups a row has one scale."""
    return {
        "quant_method": METHOD,
        "b_dtype": f"uint{bits}",
        "group_size": group_size or 0,
        "has_zero_point": True,
        "is_fp_zero_point": True,
    }


def why_not(shape: tuple[int, int], group_size: int | None) -> str | None:
    """The reason why the kernels cannot multiply a layer of that shape, if there is one."""
    columns = shape[1]
    if columns % WORD:
        return f"{columns} inputs are no multiple of {WORD}"
    if group_size is not None and (group_size < SMALLEST_GROUP or columns % group_size):
        return f"groups of {group_size} are narrower than {SMALLEST_GROUP}, or do not divide {columns} inputs"
    return None
