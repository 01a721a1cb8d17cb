"""The cost of a read-out: the paper's effective bits, and beside them everything that the count leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from matquant.codes.layouts import slices_of
from matquant.codes.nested import NestedWeight
from matquant.codes.overflow_list import list_bits
from matquant.codes.quantizers import DTYPES
from matquant.codes.slicing import slice_codes
from matquant.notation import FULL_BITS, Plan, Slice


def code_counts(nested: NestedWeight) -> Int[Tensor, " codes"]:
    """The number of weights with each parent code."""
    return torch.bincount(nested.codes.flatten(), minlength=2**nested.parent_bits)


def num_overflow(nested: NestedWeight, to: Slice) -> int:
    """The number of weights in the overflow bucket 2^r that only an extra-precision slice has (Eq. 8)."""
    return _in_overflow(code_counts(nested), to, parent_bits=nested.parent_bits) if to.extra_precision else 0


def _in_overflow(counts: Int[Tensor, " codes"], to: Slice, *, parent_bits: int) -> int:
    """The weights in the overflow bucket: each code is sliced once, however many weights have it."""
    codes = torch.arange(len(counts), device=counts.device)
    return int((counts * (slice_codes(codes, to, parent_bits=parent_bits) == 1 << parent_bits)).sum())


def overflow_share(nested: NestedWeight, to: Slice) -> float:
    """The share of weights in the overflow bucket."""
    return num_overflow(nested, to) / nested.codes.numel()


def effective_bits(layers: Mapping[str, NestedWeight], plan: Plan) -> float:
    """Average bits of a quantized weight: r, plus the share of weights in the overflow bucket (one bit more)."""
    slices = slices_of(plan, layers)
    sizes = {name: nested.codes.numel() for name, nested in layers.items()}
    bits = (size * (slices[name].bits + overflow_share(layers[name], slices[name])) for name, size in sizes.items())
    return sum(bits) / sum(sizes.values())


def overhead_bits(
    layers: Mapping[str, NestedWeight], plan: Plan, *, num_parameters: int, scale_dtype: str = "float32"
) -> dict[str, float]:
    """Bits that the paper's count leaves out, so that nothing is hidden.

    `grid_bits`: scales and zeros in `scale_dtype`, which they are stored in, and the transformation in float32, per
    quantized weight.
    `overflow_bits`: the list of weights in the overflow bucket (`overflow_list.list_bits`), per quantized weight.
    `model_bits`: everything together per parameter of the whole model, with unquantized parameters in 16 bits.
    """
    slices = slices_of(plan, layers)
    num_quantized = sum(nested.codes.numel() for nested in layers.values())
    grid = sum(8 * _num_bytes(nested, DTYPES[scale_dtype].itemsize) for nested in layers.values())
    overflow = sum(
        list_bits(nested.codes.numel(), num_overflow(nested, slices[name]))
        for name, nested in layers.items()
        if slices[name].extra_precision and slices[name].bits < nested.parent_bits
    )
    codes = sum(nested.codes.numel() * slices[name].bits for name, nested in layers.items())
    total = codes + grid + overflow + FULL_BITS * (num_parameters - num_quantized)
    return {
        "grid_bits": grid / num_quantized,
        "overflow_bits": overflow / num_quantized,
        "model_bits": total / num_parameters,
    }


def _num_bytes(nested: NestedWeight, of_a_scale: int) -> int:
    """Bytes of everything but the codes; `of_a_scale`: of a scale, or a zero."""
    transform = nested.transform.tensors.values() if nested.transform else ()
    in_transform = sum(tensor.numel() * tensor.element_size() for tensor in transform)
    return in_transform + of_a_scale * sum(tensor.numel() for tensor in nested.grid)


def code_histogram(layers: Mapping[str, NestedWeight]) -> list[int]:
    """The number of weights with each parent code: the data of Figures 1c and 4."""
    parent_bits = max(nested.parent_bits for nested in layers.values())
    counts = sum(torch.bincount(nested.codes.flatten(), minlength=2**parent_bits) for nested in layers.values())
    return torch.as_tensor(counts).tolist()


def overflow_shares(layers: Mapping[str, NestedWeight]) -> dict[str, float]:
    """The share of all weights that each narrower width would put into its overflow bucket."""
    num_weights = sum(nested.codes.numel() for nested in layers.values())
    return {
        f"overflow/int{part.bits}": sum(
            nested.codes.numel() * overflow_share(nested, part) for nested in layers.values()
        )
        / num_weights
        for part in _with_overflow(max(nested.parent_bits for nested in layers.values()))
    }


def code_statistics(layers: Mapping[str, NestedWeight]) -> dict[str, Any]:
    """A summary of the codes after training, small enough to keep beside results.

    `histogram`: weights per parent code, all layers together.  `layers`: for each, its number of weights, its effective
    bits with extra precision at the widths of the papers, and its overflow weights at every narrower width.
    """
    return {
        "histogram": code_histogram(layers),
        "layers": {name: _layer_statistics(nested) for name, nested in layers.items()},
    }


def _layer_statistics(nested: NestedWeight) -> dict[str, Any]:
    counts, size = code_counts(nested), nested.codes.numel()
    overflow = {
        bits: _in_overflow(counts, Slice(bits, extra_precision=True), parent_bits=nested.parent_bits)
        for bits in range(1, nested.parent_bits)
    }
    return {
        "num_weights": size,
        "effective_bits": {
            str(part): part.bits + overflow[part.bits] / size for part in _with_overflow(nested.parent_bits)
        },
        "overflow": {f"int{bits}": number for bits, number in overflow.items()},
    }


def _with_overflow(parent_bits: int) -> list[Slice]:
    """The narrower widths that the papers read, with their overflow bucket."""
    return [Slice(bits, extra_precision=True) for bits in (6, 4, 3, 2) if bits < parent_bits]
