"""The values that a result may have.  A file that was edited, or written by another program, may have any."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from evaluation.results.metrics import KL, KL_99, KL_MAX, KL_MEDIAN, LOG_PPLX, is_error, is_fraction
from matquant.notation import FULL_BITS

if TYPE_CHECKING:
    from evaluation.results.store import Result

NEVER_BELOW_0 = frozenset({LOG_PPLX, KL, KL_MEDIAN, KL_99, KL_MAX})
MAPPINGS = ("protocol", "metrics", "overhead", "provenance", "sources")


def fault_of(result: Result) -> str | None:
    """The first value of a result that cannot be, in words such as `metrics.acc is 1.5, which is no share`; or None."""
    return next(_faults(result), None)


def _faults(result: Result) -> Iterator[str]:
    for name in ("cell_id", "plan", "task"):
        if not isinstance(value := getattr(result, name), str):
            yield f"{name} is {_shown(value)}, which is no text"
    for name in MAPPINGS:
        if not isinstance(value := getattr(result, name), Mapping):
            yield f"{name} is {_shown(value)}, which is no mapping"
            return  # what follows looks into them
    yield from _faults_of_counts(result)
    for name, value in result.overhead.items():
        if not is_number(value) or value < 0:
            yield f"overhead.{name} is {_shown(value)}, which is no number of bits"
    for name, value in result.sources.items():
        if not isinstance(value, str):
            yield f"sources.{name} is {_shown(value)}, which is no text"
    for name, value in result.metrics.items():
        if (wrong := _wrong(name, value)) is not None:
            yield f"metrics.{name} is {_shown(value)}, which is {wrong}"


def _faults_of_counts(result: Result) -> Iterator[str]:
    if type(result.num_documents) is not int or result.num_documents <= 0:
        yield f"num_documents is {_shown(result.num_documents)}, which is no number of documents"
    if not is_number(result.effective_bits) or not 0 < result.effective_bits <= FULL_BITS:
        yield f"effective_bits is {_shown(result.effective_bits)}, which is no number of bits (up to {FULL_BITS})"
    limit = result.protocol.get("limit")
    if limit is not None and type(limit) is not int:
        yield f"protocol.limit is {_shown(limit)}, which is no number of documents"
    if not isinstance(result.checkpoint, str | None):
        yield f"checkpoint is {_shown(result.checkpoint)}, which is no checksum"


def _wrong(name: str, value: Any) -> str | None:
    """The reason why a metric cannot have a value."""
    if not is_number(value):
        return "no number"
    if is_fraction(name) and not 0 <= value <= 1:
        return "no share of documents (0 to 1)"
    if value < 0 and (is_error(name) or name in NEVER_BELOW_0):
        return "below 0"
    return None


def is_number(value: Any) -> bool:
    """True for a finite number; a bool is none, and so is an integer that no float holds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]
