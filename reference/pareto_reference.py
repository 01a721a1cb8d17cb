"""The definition of a non-dominated point, word for word: O(n^2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def non_dominated(bits: Sequence[float], quality: Sequence[float]) -> list[bool]:
    points = list(zip(bits, quality, strict=True))
    return [not _unknown(mine) and not any(_dominates(other, mine) for other in points) for mine in points]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """True if `one` is no worse in both and strictly better in one: fewer bits, more quality."""
    if _unknown(one):
        return False
    no_worse = one[0] <= other[0] and one[1] >= other[1]
    return no_worse and (one[0] < other[0] or one[1] > other[1])


def _unknown(point: tuple[float, float]) -> bool:
    return any(math.isnan(value) for value in point)
