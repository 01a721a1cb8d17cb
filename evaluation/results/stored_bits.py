"""The stored bits of a result, by today's count: older results charged more for the list of overflow weights.

They charged a bit for every weight, or 16 bits for each one in the bucket.  The counts that today's list follows from
(`matquant.codes.overflow_list`) are recorded in codes.json, so that the numbers of all results are comparable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from matquant.codes.layouts import slices_of
from matquant.codes.overflow_list import list_bits
from matquant.notation import FULL_BITS, Plan

if TYPE_CHECKING:
    from evaluation.results.store import Result, ResultStore
    from matquant.config.cell import Cell
    from matquant.notation import Slice


def recounted(result: Result, plan: Plan, store: ResultStore) -> Result | None:
    """The result with its stored bits counted anew; None if the codes that it was read from are not recorded."""
    if not result.overhead.get("overflow_bits"):
        return result
    try:
        codes = json.loads(store.text(result.cell_id, "codes.json"))
        if codes.get("checkpoint", result.checkpoint) != result.checkpoint:
            return None
        slices = slices_of(store.plan(result.cell_id, plan), codes["layers"])
        layers = [(int(codes["layers"][name]["num_weights"]), part) for name, part in slices.items()]
        lists = sum(
            list_bits(size, _num_overflow(codes["layers"][name], size, part))
            for (name, part), (size, _) in zip(slices.items(), layers, strict=True)
            if part.extra_precision
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    num_quantized = sum(size for size, _ in layers)
    nominal = sum(size * part.bits for size, part in layers) / num_quantized
    return replace(result, overhead=_with_list(result.overhead, nominal, lists / num_quantized))


def charges_float32(result: Result, cell: Cell) -> bool:
    """True for an older result that charges scales and zeros of 16 bits as if they had 32.

    Told by their number: a group of g weights has two of them, 64 / g bits a weight in float32.
    """
    if cell.grid is None or cell.grid.scale_dtype == "float32" or not cell.grid.group_size:
        return False
    return bool(result.overhead.get("grid_bits", 0.0) >= 64 / cell.grid.group_size)


def recounted_by_label(result: Result, store: ResultStore) -> Result | None:
    """The same for a plan that is known by its label alone; a plan that was a file is not."""
    plan = Plan.of_label(result.plan)
    if plan is None:
        return None if result.overhead.get("overflow_bits") else result
    return recounted(result, plan, store)


def _num_overflow(layer: Mapping[str, Any], size: int, part: Slice) -> int:
    """The overflow weights of a layer; older records have the share of them, as bits beyond the width."""
    if "overflow" in layer:
        return int(layer["overflow"].get(f"int{part.bits}", 0))
    return round(size * (float(layer["effective_bits"][str(part)]) - part.bits))


def _with_list(overhead: Mapping[str, float], nominal: float, overflow: float) -> dict[str, float]:
    """The overhead with another list of overflow weights.

    model_bits P = (nominal + grid + overflow) Q + 16 (P - Q), with Q quantized weights of P parameters.
    """
    before, model = overhead["overflow_bits"], overhead["model_bits"]
    quantized = (FULL_BITS - model) / (FULL_BITS - nominal - overhead["grid_bits"] - before)
    return {**overhead, "overflow_bits": overflow, "model_bits": model + quantized * (overflow - before)}
