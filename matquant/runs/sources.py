"""The sources of a cell: the fingerprints of the weights and the text that made what is on disk under its id.

A cell's id names its model by path or revision, and its text by path.  What lies there can change.  So the fingerprints
are kept with the run, the checkpoint and every result, and are compared before anything new is made with them.

runs/<cell id>/sources.json speaks for everything of the cell that has no record of its own.  An empty one says that the
user vouches for it; it is filled in by the next run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matquant.config.cell import Cell, FilesText, HubModel, HubText
from matquant.config.names import MAX_LENGTH
from matquant.config.setup import Setup
from matquant.errors import UserError
from matquant.models.fingerprint import is_told_by_its_id, model_fingerprint, short, text_fingerprint
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir, removal

Sources = Mapping[str, str]
"""Fingerprints: `model` is that of the weights, `text` that of the text that a cell is trained on."""


def present_sources(cell: Cell, cache: Path) -> Sources:
    """The sources of a cell as they are now, without those that are not on this machine."""
    found = {
        "model": model_fingerprint(cell.model, cache),
        "text": None if cell.data is None else text_fingerprint(cell.data, cache),
    }
    return {part: fingerprint for part, fingerprint in found.items() if fingerprint is not None}


def claim(cell: Cell, setup: Setup, before: Sources) -> Sources:
    """The sources of a cell as they are now, recorded with its run; UserError if its run was made by others.

    Called when model and text have been read: a model that was fetched from the hub has its commit by then.  `before`
    are the sources as they were before the reading.
    """
    run, present = RunDir(setup.paths.runs, cell.id), present_sources(cell, setup.paths.cache)
    if changed := [part for part in present if before.get(part, present[part]) != present[part]]:
        raise UserError(f"the {changed[0]} of {cell.id} was changed while it was read; run the same command again")
    require_same(cell, setup, present)
    recorded = recorded_sources(run) if has_work(run) else {}
    if {**recorded, **present} != recorded:
        write_json(run.sources, {**recorded, **present})
    return present


def require_same(cell: Cell, setup: Setup, present: Sources | None = None) -> None:
    """Refuses to go on with a run that was made by other sources than those of now, or by nobody knows which."""
    if is_told_by_its_id(cell):
        return
    run = RunDir(setup.paths.runs, cell.id)
    present = present_sources(cell, setup.paths.cache) if present is None else present
    places = [folder for folder in (run.path, setup.paths.results / cell.id) if folder.exists()]
    if refusal := other_sources(cell, present, records(run), places):
        raise UserError(refusal)
    if is_unproven(run):
        raise UserError(unproven(cell, run, places))


def records(run: RunDir) -> list[Sources]:
    """The sources that made a run's checkpoint, or the part of it that is there."""
    return [sources for sources in (_recorded(run), _of_checkpoint(run)) if sources] if has_work(run) else []


def recorded_sources(run: RunDir) -> Sources:
    """The record of a run, empty if it has none."""
    return _recorded(run) or {}


def has_record(run: RunDir) -> bool:
    """True if a run has a record, which may be empty."""
    return _recorded(run) is not None


def has_work(run: RunDir) -> bool:
    """True if a run has a checkpoint, or a part of one; a record alone binds nobody."""
    return run.description.exists() or any(True for kind in ("*.safetensors", "step-*") for _ in run.state.glob(kind))


def is_unproven(run: RunDir) -> bool:
    """True if a run has a checkpoint, or a part of one, and no record of what made it."""
    return has_work(run) and not has_record(run) and not _of_checkpoint(run)


def _recorded(run: RunDir) -> Sources | None:
    """The record of a run; None if there is none, or if it is no record."""
    try:
        return {} if run.sources.stat().st_size == 0 else _as_sources(read_json(run.sources))
    except (OSError, ValueError):
        return None


def _of_checkpoint(run: RunDir) -> Sources | None:
    try:
        description = read_json(run.description)
    except (OSError, ValueError):
        return None
    return _as_sources(description.get("sources")) if isinstance(description, dict) else None


def _as_sources(value: object) -> Sources | None:
    if not isinstance(value, dict):
        return None
    return {part: text for part, text in value.items() if isinstance(part, str) and isinstance(text, str)}


# --- sentences -------------------------------------------------------------------------------------------------------


def other_sources(
    cell: Cell, present: Sources, recorded: Iterable[Sources], places: Sequence[Path], *, unpack: Path | None = None
) -> str | None:
    """The sentence that refuses to mix sources, with its remedy; None if all records agree with those of now.

    `places` are the folders that the others made; `unpack` is a folder of packed results that holds some of them.
    """
    for part, now in present.items():
        others = {sources[part] for sources in recorded if part in sources} - {now}
        if others:
            made = f"made {_listed(places)} ({', '.join(sorted(map(short, others)))})"
            how = f"or delete those: {removal(places, unpack)}"
            return _of_model(cell, now, made, how) if part == "model" else _of_text(cell, now, made, how)
    return None


def _of_model(cell: Cell, now: str, made: str, how: str) -> str:
    name, commit = f"model.name={cell.model.name[: MAX_LENGTH - 9]}_{short(now)}", now.removeprefix("commit:")
    if isinstance(cell.model, HubModel) and commit != now:
        place, remedy = f"model.revision={cell.model.revision}", f"name the commit with model.revision={commit}"
        return f"{place} of {cell.model.repo} holds other weights ({short(now)}) than {made}; {remedy}, {how}"
    place = f"model.repo={cell.model.repo}" if isinstance(cell.model, HubModel) else f"model.path={_path_of(cell)}"
    return (
        f"{place} holds other weights, or another config or tokenizer ({short(now)}), than {made}; "
        f"give them a name of their own with {name}, {how}"
    )


def _of_text(cell: Cell, now: str, made: str, how: str) -> str:
    match cell.data:
        case FilesText():
            place, remedy = f"data.paths=[{','.join(cell.data.paths)}]", "give the new text a file name of its own"
        case HubText():
            place = f"data.revision={cell.data.revision} of {cell.data.repo}"
            remedy = f"name the commit with data.revision={now.removeprefix('commit:')}"
        case _:
            place, remedy = "data", "choose other text"
    return f"{place} holds other text ({short(now)}) than {made}; {remedy}, {how}"


def unproven(cell: Cell, run: RunDir, places: Sequence[Path], *, unpack: Path | None = None) -> str:
    """The sentence that refuses to go on with work of an earlier version, which kept no record of its sources."""
    what = " and ".join(
        [
            *(["model"] if not isinstance(cell.model, HubModel) else [f"{cell.model.repo} at {cell.model.revision}"]),
            *(["text"] if isinstance(cell.data, FilesText | HubText) else []),
        ]
    )
    vouch = f"mkdir -p {shlex.quote(str(run.path))} && : > {shlex.quote(str(run.sources))}"
    return (
        f"{_listed(places)} do not say which weights or text made them, as an earlier version wrote them; "
        f"if {what} of {cell.id} have not changed since, say so: {vouch}; else delete them: {removal(places, unpack)}"
    )


def _path_of(cell: Cell) -> str:
    return getattr(cell.model, "path", cell.model.name)


def _listed(places: Sequence[Path]) -> str:
    return " and ".join(map(str, places))
