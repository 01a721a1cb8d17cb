"""Slow, obvious twin of how MatGPTQ's programs read their codes (arXiv:2602.03537), one code at a time.

After its `matryoshka_slice` and `dequantize`, and the arithmetic that its kernel is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_WIDTHS = (2, 3, 4, 6, 8)


def slice_code(code: int, bits: int) -> int:
    """The r-bit code of an 8-bit one: shifted down, plus the highest bit that was lost, and no more than 2^r - 1."""
    if bits == 8:
        return code
    lost = 8 - bits
    round_up = (code >> (lost - 1)) & 1
    return min((code >> lost) + round_up, 2**bits - 1)


def weight(code: int, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """scale * (S - zero), each step rounded to the dtype that scale and zero are kept in."""
    sliced = torch.tensor(slice_code(code, bits) << (8 - bits), dtype=torch.uint8)
    return scale * (sliced - zero)


def kernel_weight(code: int, scale: Tensor, bits: int) -> Tensor:
    """The weight that the kernel multiplies by, which knows no zero."""
    return (slice_code(code, bits) - 2 ** (bits - 1)) * scale * 2 ** (8 - bits)


def layer(codes: Tensor, scale: Tensor, zero: Tensor, perm: Tensor | None, bits: int) -> Tensor:
    """A layer of a raw file, with its columns in the order of its inputs."""
    rows, columns = codes.shape
    group_size = columns // scale.shape[1]
    found = torch.empty(rows, columns, dtype=scale.dtype)
    for row in range(rows):
        for column in range(columns):
            group = column // group_size
            place = column if perm is None else int(perm[column])
            found[row, place] = weight(int(codes[row, column]), scale[row, group], zero[row, group], bits)
    return found
