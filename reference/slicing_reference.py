"""Slow, obvious twin of `matquant.codes.slicing`: Eq. 6 and Eq. 8 in exact fractions, one code at a time."""

from __future__ import annotations

import math
from fractions import Fraction


def slice_code(code: int, bits: int, *, parent_bits: int, extra_precision: bool) -> int:
    step = 2 ** (parent_bits - bits)
    bucket = math.floor(Fraction(code, step) + Fraction(1, 2)) if step > 1 else code
    if not extra_precision:
        bucket = min(max(bucket, 0), 2**bits - 1)
    return bucket * step
