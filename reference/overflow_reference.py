"""The list of overflow weights, really written and read: a string of bits for each run width, and the shortest one."""

from __future__ import annotations

from collections.abc import Sequence


def written(overflows: Sequence[bool]) -> str:
    """The bits of a layer's list: k in 5 bits, then for each run of 2^k weights the count and the places."""
    return min((_written(overflows, k) for k in range(32)), key=len)


def read(bits: str, num_weights: int) -> list[bool]:
    """The weights that a list names."""
    k, place = int(bits[:5], 2), 5
    found = [False] * num_weights
    for start in range(0, num_weights, 2**k):
        count, place = int(bits[place : place + k + 1], 2), place + k + 1
        for _ in range(count):
            offset, place = int(bits[place : place + k] or "0", 2), place + k
            found[start + offset] = True
    assert place == len(bits)
    return found


def _written(overflows: Sequence[bool], k: int) -> str:
    text = f"{k:05b}"
    for start in range(0, len(overflows), 2**k):
        places = [place for place, overflow in enumerate(overflows[start : start + 2**k]) if overflow]
        text += f"{len(places):0{k + 1}b}" + "".join(f"{place:0{k}b}" for place in places if k)
    return text
