"""The codes of a cell after training: the number of weights at each one, as recorded beside its results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from matquant.notation import FULL_BITS, Slice

if TYPE_CHECKING:
    import pandas as pd

    from evaluation.results.store import ResultStore


@dataclass(frozen=True)
class Codes:
    """The codes of a cell: `histogram` counts weights per parent code, `num_weights` those of every quantized layer."""

    histogram: np.ndarray
    num_weights: Mapping[str, int]

    @property
    def parent_bits(self) -> int:
        return int(len(self.histogram) - 1).bit_length()

    @property
    def shares(self) -> np.ndarray:
        """The share of all weights at each code."""
        return self.histogram / max(1, self.histogram.sum())

    @property
    def mean(self) -> float:
        return float(self.shares @ np.arange(len(self.histogram)))


def load_codes(store: ResultStore, cell_id: str) -> Codes | None:
    """The codes of a cell; None if they are not on disk, or not valid."""
    try:
        recorded = json.loads(store.text(cell_id, "codes.json"))
        histogram = np.asarray(recorded["histogram"], dtype=float)
        num_weights = {str(name): int(layer["num_weights"]) for name, layer in recorded["layers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    whole = histogram.ndim == 1 and len(histogram) > 1 and np.isfinite(histogram).all() and (histogram >= 0).all()
    return Codes(histogram, num_weights) if whole and histogram.sum() > 0 else None


def bucket_shares(codes: Codes, to: Slice) -> np.ndarray:
    """The share of weights in each bucket of a narrower slice (Eq. 6), the overflow bucket last (Eq. 8).

    A slice without the extra bit clamps the last share into the bucket before it.
    """
    step = codes.parent_bits - to.bits
    buckets = rounded(np.arange(len(codes.histogram)), step)
    return np.bincount(buckets, weights=codes.shares, minlength=(1 << to.bits) + 1)


def rounded(codes: np.ndarray, step: int) -> np.ndarray:
    """floor(q / 2^step + 1/2): what is left of codes without their last `step` bits."""
    return codes if step == 0 else (codes + (1 << (step - 1))) >> step


def slicing_steps(codes: Iterable[int], to: Slice, parent_bits: int = 8) -> pd.DataFrame:
    """Eq. 6 step by step, a row for each code: divided, rounded, clipped, and back on the parent's scale."""
    import pandas as pd

    parents, step = np.asarray(list(codes)), parent_bits - to.bits
    inside = np.clip(rounded(parents, step), 0, (1 << to.bits) - 1)
    columns = {
        "code q": parents,
        f"q / 2^{step}": parents / (1 << step),
        "rounded half up": rounded(parents, step),
        f"clipped to 0..{(1 << to.bits) - 1}": inside,
        "back on the parent's scale": inside << step,
    }
    return pd.DataFrame(columns).set_index("code q")


def num_parameters(rows: pd.DataFrame, codes: Mapping[str, Codes]) -> dict[str, float]:
    """The number of parameters of each model, from the stored bits of a uniform read-out and its quantized weights.

    model_bits P = (bits + grid_bits + overflow_bits) Q + 16 (P - Q), with Q quantized weights of P.
    """
    found: dict[str, float] = {}
    uniform = rows["plan"].str.fullmatch(r"int\d") & rows["model_bits"].notna()
    for row in rows[uniform].to_dict("records"):
        of_cell = codes.get(row["cell_id"].split(", ")[0])
        if of_cell is None or row["model"] in found or row["model_bits"] == FULL_BITS:
            continue
        quantized = sum(of_cell.num_weights.values())
        stored = row["bits"] + row["grid_bits"] + row["overflow_bits"]
        found[row["model"]] = quantized * (stored - FULL_BITS) / (row["model_bits"] - FULL_BITS)
    return found


def codes_of(store: ResultStore | None, cell_ids: Iterable[str]) -> dict[str, Codes]:
    """The codes of every cell that has them."""
    found = {} if store is None else {cell_id: load_codes(store, cell_id) for cell_id in cell_ids}
    return {cell_id: codes for cell_id, codes in found.items() if codes is not None}
