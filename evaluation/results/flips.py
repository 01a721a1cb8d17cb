"""Flips: the documents on which a quantized model and the unquantized one differ, each way counted apart.

Two models of equal accuracy can answer differently on many documents (arXiv:2407.09141).  The difference of their
accuracies is what was won less what was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

RIGHT_TO_WRONG, WRONG_TO_RIGHT = "right_to_wrong", "wrong_to_right"


class Flips(NamedTuple):
    """The documents that the unquantized model has right and the quantized one wrong; the other way; and all."""

    right_to_wrong: int
    wrong_to_right: int
    documents: int

    @property
    def shares(self) -> dict[str, float]:
        return {
            RIGHT_TO_WRONG: self.right_to_wrong / self.documents,
            WRONG_TO_RIGHT: self.wrong_to_right / self.documents,
        }


def flips_of(quantized: Sequence[Any] | None, unquantized: Sequence[Any] | None) -> Flips | None:
    """The flips of two columns of outcomes of the same documents; None unless each is right (1) or wrong (0)."""
    if not quantized or not unquantized or len(quantized) != len(unquantized):
        return None
    if any(value not in (0, 1) for value in (*quantized, *unquantized)):
        return None
    pairs = list(zip(quantized, unquantized, strict=True))
    return Flips(pairs.count((0, 1)), pairs.count((1, 0)), len(pairs))
