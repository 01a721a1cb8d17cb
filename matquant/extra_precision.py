"""Effective bits: what a read-out costs by the paper's count."""

from __future__ import annotations

from collections.abc import Mapping

from matquant.mixnmatch import slices_of
from matquant.nested import NestedWeight
from matquant.notation import Plan, Slice
from matquant.slicing import slice_codes


def overflow_share(nested: NestedWeight, to: Slice) -> float:
    """The share of weights in the overflow bucket 2^r that only an extra-precision slice has (Eq. 8)."""
    if not to.extra_precision:
        return 0.0
    top = 1 << nested.parent_bits
    return (slice_codes(nested.codes, to, parent_bits=nested.parent_bits) == top).float().mean().item()


def effective_bits(layers: Mapping[str, NestedWeight], plan: Plan) -> float:
    """Average bits of a quantized weight: r, plus the share of weights in the overflow bucket (one bit more)."""
    slices = slices_of(plan, layers)
    sizes = {name: nested.codes.numel() for name, nested in layers.items()}
    bits = (size * (slices[name].bits + overflow_share(layers[name], slices[name])) for name, size in sizes.items())
    return sum(bits) / sum(sizes.values())
