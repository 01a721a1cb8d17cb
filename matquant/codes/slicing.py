"""The slicing operator of MatQuant: an r-bit code is the r most significant bits of its c-bit parent."""

from __future__ import annotations

import torch
from jaxtyping import Int16, Integer
from torch import Tensor

from matquant.notation import EQ_6, Slice


def slice_codes(codes: Integer[Tensor, "*shape"], to: Slice, *, parent_bits: int) -> Int16[Tensor, "*shape"]:
    """Reads c-bit codes at r bits, on the parent's grid; int16 values between 0 and 2^c.

    S(q, r) = clip(floor(q / 2^(c-r) + 1/2), 0, 2^r - 1) * 2^(c-r)          (Eq. 6, arXiv:2502.06786)

    Other rules, for what was measured instead of Eq. 6: `floor` is floor(q / 2^(c-r)) * 2^(c-r), plain truncation, and
    `centre` is 2^(c-r-1) more.  Neither reaches a bucket beyond the last.

    With extra precision the clip is left out (Eq. 8), so that 2^r + 1 values remain and the top one, 2^c, needs c + 1
    bits: that is why the result is int16 even where the codes are uint8.
    """
    dropped = parent_bits - to.bits
    codes = codes.to(torch.int16)
    if dropped == 0:
        return codes
    if to.rule != EQ_6:
        low = codes.bitwise_right_shift(dropped).bitwise_left_shift_(dropped)
        return low if to.rule == "floor" else low.add_(1 << (dropped - 1))
    # Half up, as in the paper's bit-wise definition: torch.round is half to even and moves 8 of 256 int4 codes.
    # Always from the parent: 8 -> 4 -> 2 rounds twice and moves 24 of 256 codes by a whole bucket.
    buckets = (codes + (1 << (dropped - 1))).bitwise_right_shift_(dropped)
    if not to.extra_precision:
        buckets.clamp_(max=(1 << to.bits) - 1)
    return buckets.bitwise_left_shift_(dropped)
