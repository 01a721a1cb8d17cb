"""The results of a cell beside the weights and the text that its model and its data are now.

Asked before the first cell computes, and again when a cell's turn has come.  Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.protocol import is_complete
from evaluation.results.store import ResultStore
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.errors import UserError
from matquant.models.fingerprint import is_told_by_its_id
from matquant.runs.folder import RunDir
from matquant.runs.sources import Sources, has_record, is_unproven, other_sources, present_sources, records, unproven


def require_same_sources(cells: Sequence[Cell], setup: Setup) -> None:
    """Refuses cells that have something on disk that other weights or other text made."""
    for reason in identity_refusals(cells, setup).values():
        raise UserError(reason)


def identity_refusals(cells: Sequence[Cell], setup: Setup) -> dict[str, str]:
    """The sentences by cell id that refuse to mix weights or texts; model and text are looked at once for all cells."""
    known: dict[str, Sources] = {}
    refused = {}
    for cell in cells:
        if is_told_by_its_id(cell):
            continue
        facts = cell.model_dump_json(include={"model", "data"})
        if facts not in known:
            known[facts] = present_sources(cell, setup.paths.cache)
        if reason := _refusal(cell, setup, known[facts]):
            refused[cell.id] = reason
    return refused


def _refusal(cell: Cell, setup: Setup, present: Sources) -> str | None:
    run, store = RunDir(setup.paths.runs, cell.id), ResultStore(setup.paths.results)
    of_results = store.sources(cell.id)
    is_packed = store.has_packed(cell.id)
    results = store.folder / cell.id
    places = [*([run.path] if run.path.exists() else []), *([results] if is_packed or results.exists() else [])]
    unpack = store.folder if is_packed else None
    if other := other_sources(cell, present, [*records(run), *of_results], places, unpack=unpack):
        return other
    is_old = is_unproven(run) or (not has_record(run) and not all(of_results))
    # A cell that lacks nothing computes nothing: it is shown as it was measured.
    if is_old and "model" in present and not is_complete(cell, setup.readout, store):
        return unproven(cell, run, places, unpack=unpack)
    return None
