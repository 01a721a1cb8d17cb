"""Effective bits: what a read-out costs by the paper's count."""

from __future__ import annotations

from collections.abc import Mapping

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
    assert plan.default is not None
    sizes = {name: nested.codes.numel() for name, nested in layers.items()}
    bits = sum(size * (plan.default.bits + overflow_share(layers[name], plan.default)) for name, size in sizes.items())
    return bits / sum(sizes.values())
