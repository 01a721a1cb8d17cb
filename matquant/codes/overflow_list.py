"""The list of weights in the overflow bucket, as it is stored beside the codes of an extra-precision slice."""

from __future__ import annotations

RUN_BITS = 5
"""Bits of a layer that hold k, from 0 to 31."""


def list_bits(num_weights: int, num_overflow: int) -> int:
    """The bits of the cheapest exact list of a layer's overflow weights: its length follows from two counts.

    The layer is cut into runs of 2^k weights.  A run has the count of its overflow weights, 0 to 2^k, in k + 1 bits,
    and the place of each of them within the run in k bits; k is chosen for the layer and stored with it:

        5 + min over k of  k * num_overflow + (k + 1) * ceil(num_weights / 2^k)

    k = 0 is a bitmap, one bit a weight; 6.3 % of overflow cost 0.49 bits a weight at k = 6.

    All fields of a layer have one width, so that an engine finds the start of every run from its counts alone and
    reads all runs at once.  Codes of variable length are shorter (gaps in Rice's code: 0.34 bits a weight at 6.3 %),
    but each field begins where the one before it has been decoded; they are not counted on here.  A choice of k for
    each run would cost a field a run, and runs of one layer are alike.
    """
    return RUN_BITS + min(k * num_overflow + (k + 1) * -(-num_weights // 2**k) for k in range(2**RUN_BITS))
