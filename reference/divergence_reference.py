"""Slow twin of the measures against the unquantized model: token by token, over the whole vocabulary, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    total = math.fsum(math.exp(value - top) for value in logits)
    return [value - top - math.log(total) for value in logits]


def measures(expected: np.ndarray, given: np.ndarray, targets: Sequence[int]) -> dict[str, float]:
    """The measures of one text, of logits [tokens, vocabulary] of the unquantized and of the other model."""
    kl, same, changes = [], [], []
    for wanted, found, target in zip(expected.tolist(), given.tolist(), targets, strict=True):
        p, q = log_softmax(wanted), log_softmax(found)
        kl.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if math.exp(a) > 0))
        same.append(wanted.index(max(wanted)) == found.index(max(found)))
        changes.append(math.exp(q[target]) - math.exp(p[target]))
    return {
        "kl": math.fsum(kl) / len(kl),
        "kl_median": percentile(kl, 0.5),
        "kl_99": percentile(kl, 0.99),
        "kl_max": max(kl),
        "same_top_p": sum(same) / len(same),
        "rms_dp": math.sqrt(math.fsum(change**2 for change in changes) / len(changes)),
        "mean_dp": math.fsum(changes) / len(changes),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """llama.cpp's: between two values on the line between them."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return (1 - (place - low)) * ordered[low] + (place - low) * ordered[high]


def flips(ours: Sequence[int], theirs: Sequence[int]) -> tuple[int, int]:
    """How many documents the other model (`theirs`) has right and ours wrong, and the other way round."""
    lost = won = 0
    for our, their in zip(ours, theirs, strict=True):
        if their == 1 and our == 0:
            lost += 1
        if their == 0 and our == 1:
            won += 1
    return lost, won
