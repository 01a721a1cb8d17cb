"""Slow, obvious twin of `matquant.codes.slicing`: Eq. 6 and Eq. 8 in exact fractions, one code at a time."""

from __future__ import annotations

import math
from fractions import Fraction


def slice_code(code: int, bits: int, *, parent_bits: int, extra_precision: bool, rule: str = "half_up") -> int:
    step = 2 ** (parent_bits - bits)
    if rule == "floor" or step == 1:
        return code - code % step
    if rule == "centre":
        return code - code % step + step // 2
    bucket = math.floor(Fraction(code, step) + Fraction(1, 2))
    if not extra_precision:
        bucket = min(max(bucket, 0), 2**bits - 1)
    return bucket * step
