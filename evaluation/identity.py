"""The results of a cell beside the weights and the text that its model and its data are now.

Asked before the first cell computes, and again when a cell's turn has come.  Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.protocol import is_complete
from evaluation.results.store import ResultStore
from matquant.config.cell import Cell, HubText
from matquant.config.setup import Setup
from matquant.errors import UserError
from matquant.models.fingerprint import is_told_by_its_id, short, text_fingerprint
from matquant.models.text.documents import revision
from matquant.notation import Plan
from matquant.runs.folder import RunDir, removal
from matquant.runs.sources import (
    Sources,
    has_record,
    has_work,
    is_unproven,
    other_sources,
    present_sources,
    recorded_sources,
    records,
    unproven,
)
from matquant.search.request import recorded_checksum

HELD_OUT = "held_out"


def require_same_sources(cells: Sequence[Cell], setup: Setup) -> None:
    """Refuses cells that have something on disk that other weights or other text made."""
    for reason in identity_refusals(cells, setup).values():
        raise UserError(reason)


def identity_refusals(cells: Sequence[Cell], setup: Setup) -> dict[str, str]:
    """The sentences by cell id that refuse to mix weights or texts; model and text are looked at once for all cells."""
    known, refused = dict[str, Sources](), dict[str, str]()
    held_out = held_out_source(setup)
    for cell in cells:
        if is_told_by_its_id(cell) and not held_out:
            continue
        if reason := _refusal(cell, setup, known, held_out):
            refused[cell.id] = reason
    return refused


def held_out_source(setup: Setup) -> Sources:
    """The commit of held-out text from the hub, which a protocol does not tell; it tells the content of other text."""
    held_out = setup.readout.perplexity
    if not isinstance(held_out, HubText):
        return {}
    commit = text_fingerprint(held_out, setup.paths.cache)
    return {} if commit is None else {HELD_OUT: f"{revision(held_out)} is {commit}"}


def _refusal(cell: Cell, setup: Setup, known: dict[str, Sources], held_out: Sources) -> str | None:
    run, store = RunDir(setup.paths.runs, cell.id), ResultStore(setup.paths.results)
    of_results = store.sources(cell.id)
    if not (of_results or has_work(run)):
        return None  # a model that nothing was made of is not read for this: 80 GB take a minute
    facts = cell.model_dump_json(include={"model", "data"})
    if facts not in known:
        known[facts] = present_sources(cell, setup.paths.cache)
    present = known[facts]
    is_packed = store.has_packed(cell.id)
    results = store.folder / cell.id
    places = [*([run.path] if run.path.exists() else []), *([results] if is_packed or results.exists() else [])]
    unpack = store.folder if is_packed else None
    made = [*records(run), *(sources or recorded_sources(run) for sources in of_results)]
    if other := other_sources(cell, present, made, places, unpack=unpack):
        return other
    if moved := _other_held_out(setup, of_results, held_out, results, unpack):
        return moved
    if is_told_by_its_id(cell):
        return None
    is_old = is_unproven(run) or (not has_record(run) and not all(of_results))
    # A cell that lacks nothing computes nothing: it is shown as it was measured.
    if is_old and "model" in present and not is_complete(cell, setup.readout, store):
        return unproven(cell, run, places, unpack=unpack)
    return None


def require_same_codes(cell: Cell, setup: Setup) -> None:
    """Refuses to measure a checkpoint beside results of another one: a cell whose run was lost is trained again.

    Trained on another machine it can end in other codes, and rows of one cell would be of two models.
    """
    run, store = RunDir(setup.paths.runs, cell.id), ResultStore(setup.paths.results)
    now = recorded_checksum(run)
    if now and store.checkpoints(cell.id) - {now}:
        raise UserError(
            f"{run.checkpoint} holds other codes than {store.folder / cell.id} was measured on: {cell.id} was trained "
            f"again; measure all of it again after: {store.removal(cell.id)}"
        )


def require_same_widths(cell: Cell, plan: Plan, found: Mapping[str, Any], store: ResultStore) -> None:
    """Refuses to measure the widths that a search has found beside results of other ones under the same name.

    A search on another machine, or in another dtype, can end in other widths.
    """
    measured = [result for result in store.results(cell.id) if result.plan == str(plan)]
    recorded = store.plan(cell.id, plan)
    if measured and recorded.layers is not None and recorded != plan.found(found["layers"]):
        raise UserError(
            f"a search found other widths for {plan} of {cell.id} than {store.folder / cell.id} was measured with; "
            f"measure all of it again after: {store.removal(cell.id)}"
        )


def _other_held_out(
    setup: Setup, of_results: Iterable[Sources], held_out: Sources, results: Path, unpack: Path | None
) -> str | None:
    spec = setup.readout.perplexity
    if not held_out or not isinstance(spec, HubText):
        return None
    name, _, now = held_out[HELD_OUT].partition(" is ")
    recorded = (sources[HELD_OUT].partition(" is ") for sources in of_results if HELD_OUT in sources)
    others = {commit for text, _, commit in recorded if text == name} - {now}
    if not others:
        return None
    return (
        f"readout.perplexity.revision={spec.revision} of {spec.repo} holds other text ({short(now)}) than measured "
        f"{results} ({', '.join(sorted(map(short, others)))}); name the commit with "
        f"readout.perplexity.revision={now.removeprefix('commit:').partition(',')[0]}, or measure again after: "
        f"{removal([results], unpack)}"
    )
