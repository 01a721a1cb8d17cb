"""The command `matquant export FORMAT CELL [PLAN] DIR`: a trained cell as a folder that others read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from matquant.codes.layouts import slices_of
from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import DTYPES
from matquant.codes.sliced import sliced
from matquant.command.parsing import parse
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.models.coverage import check_layers
from matquant.models.loading import config_of, load_model
from matquant.notation import FULL, Plan
from matquant.runs.checkpoint import NestedCheckpoint, has_checkpoint, load_checkpoint
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir
from matquant.runs.provenance import library_versions, source_commit
from matquant.runs.sources import recorded_sources, require_same
from matquant.search.request import found_plan
from matquant.serving.formats import Exactness, Format, LayerShape, Record, Source
from matquant.serving.nested_writer import write_nested
from matquant.serving.whole_folder import require_free, whole

NESTED, LM_EVAL = "nested", "lm-eval"
FORMATS: Mapping[str, str] = {
    "dense": "matquant.serving.dense:Dense",
    "humming": "matquant.serving.humming:Humming",
}
"""Formats of one read-out, each in a module of its own: `module:class`."""
CARD = "analysis.report.card"
"""The module that writes a model card from results; results are not read here."""


@dataclass(frozen=True)
class Trained:
    """A trained cell: what is exported."""

    cell: Cell
    setup: Setup

    @property
    def run(self) -> RunDir:
        return RunDir(self.setup.paths.runs, self.cell.id)

    def checkpoint(self) -> NestedCheckpoint:
        """The codes; UserError if there are none, or if they were made from another model than the cell names now."""
        if self.cell.objective is None:
            raise UserError("a cell of base=none is not quantized and has no codes to export")
        if not has_checkpoint(self.run.checkpoint):
            raise UserError(
                f"cell {self.cell.id} is not trained yet; run it with `matquant run` and the same overrides first"
            )
        require_same(self.cell, self.setup)
        return load_checkpoint(self.run.checkpoint, self.cell)

    def dtype(self) -> str:
        """The dtype that the model was published in."""
        own = config_of(self.cell.model, cache=self.setup.paths.cache).dtype
        return next((name for name, dtype in DTYPES.items() if dtype == own), "float32")


def find_trained(words: Sequence[str], overrides: Sequence[str]) -> Trained:
    """The cell that was typed: its id, the folder of its run, or overrides that describe it."""
    if not words:
        study = load_study(overrides)
        return Trained(study.one_cell(), study.setup)
    (word,) = words
    if others := [override for override in overrides if not override.lstrip("+").startswith("paths.")]:
        raise UserError(f"{word} is a cell already; leave {others[0]} out, or name the cell by overrides alone")
    folder = Path(word).expanduser()
    if (folder / "cell.json").is_file():
        overrides = [*overrides, f"paths.runs={folder.resolve().parent}"]
        word = folder.resolve().name
    setup = load_study(overrides).setup
    description = RunDir(setup.paths.runs, word).cell
    if not description.is_file():
        raise UserError(
            f"{word} is neither the folder of a run nor a cell in {setup.paths.runs}; `ls {setup.paths.runs}` shows the "
            "cells there, and paths.runs=DIR names another folder"
        )
    return Trained(Cell.model_validate(read_json(description)), setup)


def shapes_of(layers: Mapping[str, NestedWeight], plan: Plan) -> dict[str, LayerShape]:
    """What a format is asked about: every layer's width, shape and kind of grid."""
    parts = slices_of(plan, layers)
    found = {}
    for name, nested in layers.items():
        rows, columns = nested.codes.shape
        groups = nested.grid.scale.shape[1]
        middle = float(1 << (nested.parent_bits - 1))
        found[name] = LayerShape(
            parts[name],
            (rows, columns),
            None if groups == 1 else columns // groups,
            bool((nested.grid.zero == middle).all()),
            nested.transform is not None,
        )
    return found


def export_nested(trained: Trained, folder: Path, *, dtype: str | None = None) -> None:
    """Writes the folder that holds every width."""
    require_free(folder)
    checkpoint = trained.checkpoint()
    cell, cache = trained.cell, trained.setup.paths.cache
    assert cell.grid is not None
    model, tokenizer = load_model(cell.model, cache=cache, dtype=dtype or trained.dtype(), device=torch.device("cpu"))
    check_layers(cell, model, checkpoint.layers, trained.run.checkpoint)
    plans = {path.stem: read_json(path)["layers"] for path in sorted(trained.run.plans.glob("*.json"))}
    depth = max(nested.parent_bits for nested in checkpoint.layers.values())
    with whole(folder) as beside, tqdm(total=depth + 2, desc=f"writing {folder}", unit="file", leave=False) as bar:
        write_nested(
            beside,
            model,
            tokenizer,
            checkpoint.layers,
            scale_dtype=cell.grid.scale_dtype,
            facts=_facts(trained, checkpoint),
            plans=plans,
            wrote=lambda file: bar.update(),
        )
        _write_card(trained, beside)


def export_readout(
    trained: Trained, format: Format, plan: Plan, folder: Path, *, round_zeros: bool = False, dtype: str | None = None
) -> Record:
    """Writes one read-out in one format; UserError for what the format cannot hold, before anything is written.

    `round_zeros` allows a format without real zeros to round them.
    """
    require_free(folder)
    checkpoint = trained.checkpoint()
    plan = readable(trained, checkpoint, plan)
    cell, cache = trained.cell, trained.setup.paths.cache
    model, tokenizer = load_model(cell.model, cache=cache, dtype=dtype or trained.dtype(), device=torch.device("cpu"))
    check_layers(cell, model, checkpoint.layers, trained.run.checkpoint)
    parts = slices_of(plan, checkpoint.layers)

    def read(name: str) -> Any:
        return sliced(checkpoint.layers[name], parts[name])

    source = Source(model, tokenizer, plan, shapes_of(checkpoint.layers, plan), read)
    format.refuse(source)
    exactness = Exactness(format.scale_dtype)
    for name in tqdm(source.shapes, desc="comparing", unit="layer", leave=False):
        weight = read(name)
        exactness.add(weight, format.hold(name, weight))
    if exactness.inexact and not round_zeros:
        raise UserError(
            f"{format.name} at {plan} is {exactness}, because it keeps zeros as integers and those of {exactness.inexact} "
            f"layers lie between two codes; add --round-zeros to write it all the same, or choose a format with real "
            f"zeros (humming, hqq, gguf at int4, dense), or train with grid.zero=aligned_{plan}"
        )
    record = Record(format.name, plan, exactness, _facts(trained, checkpoint))
    with whole(folder) as beside:
        format.write(beside, source, lambda name: format.hold(name, read(name)))
        write_json(beside / "export.json", record.dump())
    return record


def readable(trained: Trained, checkpoint: NestedCheckpoint, plan: Plan) -> Plan:
    """A plan with its widths; UserError for one that the checkpoint cannot be read at."""
    if str(plan) == FULL:
        raise UserError("full is the model before it was quantized; choose a width such as int4")
    if plan.strategy is not None:
        asked = trained.setup.readout.searched(plan)
        path = found_plan(trained.run, trained.setup.readout, asked)
        if path is None:
            raise UserError(
                f"{plan} was not searched for yet; run `matquant search {plan}` with the cell's overrides first"
            )
        plan = asked.found(read_json(path)["layers"])
    for name, part in slices_of(plan, checkpoint.layers).items():
        bits = checkpoint.layers[name].parent_bits
        if part.bits > bits or (part.extra_precision and part.bits == bits):
            raise UserError(f"{plan} reads {name} at {part}, and its parent is int{bits}; choose int{bits} or narrower")
    return plan


def _facts(trained: Trained, checkpoint: NestedCheckpoint) -> dict[str, Any]:
    return {
        "cell_id": trained.cell.id,
        "cell": trained.cell.model_dump(mode="json"),
        "sources": dict(recorded_sources(trained.run)),
        "checksum": checkpoint.checksum,
        **source_commit(),
        "versions": library_versions(),
    }


def _write_card(trained: Trained, folder: Path) -> None:
    """The model card, written by the room that reads results."""
    import_module(CARD).write_card(trained.cell, trained.setup, folder)


def format_named(name: str) -> Format:
    module, _, kind = FORMATS[name].partition(":")
    return getattr(import_module(module), kind)()


def main(arguments: Sequence[str]) -> int | None:
    given = parse("export", arguments)
    overrides = [word for word in given.words if "=" in word or word.startswith("~")]
    words = [word for word in given.words if word not in overrides]
    needs_plan = given.format != NESTED
    cell, plan, folder = split(words, given.format, has_overrides=bool(overrides), needs_plan=needs_plan)
    trained = find_trained(cell, overrides)
    if plan is None:
        export_nested(trained, folder, dtype=given.dtype)
        print(f"{folder}: every width of {trained.cell.id}; matquant.load({str(folder)!r}, 'int4') reads one")
    elif given.format == LM_EVAL:
        import_module("evaluation.export").export_for_lm_eval(trained.cell, trained.setup, plan, folder)
    else:
        record = export_readout(
            trained, format_named(given.format), plan, folder, round_zeros=given.round_zeros, dtype=given.dtype
        )
        print(f"{folder}: {trained.cell.id} at {record.plan} as {record.format}, {record.exactness}")
    return None


def split(
    words: Sequence[str], format: str, *, has_overrides: bool, needs_plan: bool
) -> tuple[list[str], Plan | None, Path]:
    """The cell, the plan and the folder among the words that are no overrides."""
    shape = ["PLAN"] * needs_plan + ["DIR"]
    cell = [] if len(words) == len(shape) and has_overrides else ["CELL"]
    if len(words) != len(shape) + len(cell):
        raise UserError(
            f"matquant export {format} takes {' '.join(['CELL', *shape])}, where CELL is an id, the folder of a run or "
            f"overrides, and {len(words)} words were given: {' '.join(words) or 'none'}"
        )
    try:
        plan = Plan.parse(words[-2]) if needs_plan else None
    except ValueError as error:
        raise UserError(str(error)) from error
    return list(words[: len(cell)]), plan, Path(words[-1]).expanduser()
