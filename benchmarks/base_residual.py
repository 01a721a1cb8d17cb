"""The stored bits of two widths: two checkpoints, bit planes, or a base with its residual.

    python -m benchmarks.base_residual [KEY=VALUE ...]

Reads results of `experiment=base_residual` from the disk (overrides are those of `matquant run`, such as
paths.results=DIR) and prints, for each parent, log perplexity at the base's width and at its own, and the bits of a
weight's codes by each way of storing them.  Scales and zeros come on top, once for a parent, and twice for two
checkpoints.  `matquant.codes.base_residual` has the arithmetic.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from analysis.frame.code_counts import bucket_shares, load_codes
from analysis.frame.load import load_frame
from analysis.frame.summary import summary
from analysis.tables.typeset import with_error
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import ResultStore
from matquant.codes.base_residual import StoredBits, stored_bits
from matquant.command.terminal import ended
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.notation import Slice

BASE = Slice(4)
HEADS = ("base alone", "base + residual", "planes of base", "all planes", "two checkpoints")


def main(arguments: Sequence[str]) -> None:
    """Prints a line for each parent, and for the base that was quantized for itself."""
    study = load_study(["experiment=base_residual", *arguments])
    store = ResultStore(study.setup.paths.results)
    rows = summary(load_frame(study.cells, study.setup, store))
    if rows[LOG_PPLX].isna().all():
        words = " ".join(map(shlex.quote, ["experiment=base_residual", *arguments]))
        raise UserError(f"nothing of it is measured in {study.setup.paths.results}; run: matquant launch {words}")
    print(f"{'log pplx: row':72} {BASE!s:>16} {'parent':>16}")
    for name, of_cell in rows[rows["base"] != "none"].groupby("cell_id", sort=False):
        at = {row["plan"]: with_error(row[LOG_PPLX], row[f"{LOG_PPLX}_stderr"], ".3f") for _, row in of_cell.iterrows()}
        print(f"{of_cell['label'].iloc[-1]:72} {at.get(str(BASE), ''):>16} {at.get('int8', ''):>16}")
        if (bits := bits_of(store, str(name))) is not None:
            parts = (f"{head} {value:.3f}" for head, value in zip(HEADS, bits, strict=True))
            grid = of_cell["grid_bits"].iloc[0]
            print(f"    bits of a weight's codes: {', '.join(parts)}; + grid {grid:.3f}")


def bits_of(store: ResultStore, cell_id: str) -> StoredBits | None:
    """The stored bits of a parent's codes; None for codes that are no parent of the base, or are not recorded."""
    codes = load_codes(store, cell_id)
    if codes is None or codes.parent_bits <= BASE.bits:
        return None
    number = sum(codes.num_weights.values())
    clamped = round(number * float(bucket_shares(codes, BASE)[-1]))
    return stored_bits(BASE, parent_bits=codes.parent_bits, num_weights=number, num_clamped=clamped)


if __name__ == "__main__":
    sys.exit(ended(lambda: main(sys.argv[1:])))
