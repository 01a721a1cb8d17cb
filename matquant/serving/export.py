"""The command `matquant export FORMAT CELL [PLAN] DIR`: a trained cell as a folder that others read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from matquant.codes.layouts import slices_of
from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import ALIGNMENTS, DTYPES
from matquant.codes.sliced import sliced
from matquant.command.parsing import parse
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.models.layers.coverage import check_layers
from matquant.models.loading import config_of, load_model
from matquant.notation import EQ_6, FULL, Plan, Slice, by_eq_6
from matquant.runs.checkpoint import NestedCheckpoint, load_checkpoint
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir
from matquant.runs.provenance import library_versions, source_commit
from matquant.runs.sources import recorded_sources, require_same
from matquant.runs.tracked.artifacts import nested_artifact
from matquant.runs.tracking import tracking
from matquant.search.request import found_plan
from matquant.serving.engines.formats import Exactness, Format, LayerShape, Noted, Record, Source
from matquant.serving.nested.writer import write_nested
from matquant.serving.whole_folder import require_free, whole

NESTED, MATGPTQ, LM_EVAL = "nested", "matgptq", "lm-eval"
FORMATS: Mapping[str, str] = {
    "dense": "matquant.serving.engines.dense:Dense",
    "compressed-tensors": "matquant.serving.engines.compressed_tensors:CompressedTensors",
    "hqq": "matquant.serving.engines.hqq:HQQ",
    "gguf": "matquant.serving.gguf.file:Gguf",
    "humming": "matquant.serving.engines.humming:Humming",
}
"""Formats of one read-out, each in a module of its own: `module:class`."""
SETUP = ("paths.", "readout.", "search=", "tracking=", "tracking.")
"""Overrides that change no cell."""
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
        if self.cell.base.kind == "foreign":
            raise UserError(f"{self.cell.id} is a model that somebody else quantized; export a cell of another base")
        if self.cell.objective is None:
            raise UserError("a cell of base=none is not quantized and has no codes to export")
        self.run.require_trained()
        require_same(self.cell, self.setup)
        return load_checkpoint(self.run.checkpoint, self.cell)

    def require_eq_6(self, plan: Plan | None) -> None:
        """Refuses narrower slices of codes that were trained for another rule; `plan`: None for every width."""
        objective = self.cell.objective
        assert objective is not None
        is_whole = plan is not None and plan.default is not None and plan.default.bits >= objective.parent_bits
        if objective.rule != EQ_6 and not is_whole:
            raise UserError(
                f"the slices of {self.cell.id} were trained by {objective.rule}, and exports hold slices by Eq. 6 "
                f"alone; export int{objective.parent_bits} in a format of one width, or a cell of slicing={EQ_6}"
            )

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
    if others := [override for override in overrides if not override.lstrip("+").startswith(SETUP)]:
        raise UserError(f"{word} is a cell already; leave {others[0]} out, or name the cell by overrides alone")
    setup = load_study(overrides).setup
    if is_run(word):
        folder = Path(word).expanduser().resolve()
        setup = setup.model_copy(update={"paths": setup.paths.model_copy(update={"runs": folder.parent})})
        word = folder.name
    description = RunDir(setup.paths.runs, word).cell
    if not description.is_file():
        raise UserError(
            f"{word} is neither the folder of a run nor a cell in {setup.paths.runs}; `ls {setup.paths.runs}` shows "
            "the cells there, and paths.runs=DIR names another folder"
        )
    return Trained(_described(description), setup)


def _described(path: Path) -> Cell:
    """The cell of a run's folder; UserError if it is not one that this version reads."""
    try:
        cell = Cell.model_validate(read_json(path))
    except ValueError as error:
        raise UserError(
            f"{path} does not describe a cell as this version knows it; name the cell by the overrides of its run"
        ) from error
    if cell.id != path.parent.name:
        raise UserError(f"{path.parent} holds the run of {cell.id}; give the folder its name back")
    return cell


def is_run(word: str) -> bool:
    """True for the folder of a run."""
    return (Path(word).expanduser() / "cell.json").is_file()


def is_override(word: str) -> bool:
    """True for a word that changes a configuration: KEY=VALUE or ~KEY, and no place in a home folder."""
    return ("=" in word or word.startswith("~")) and not word.startswith("~/") and not is_run(word)


def shapes_of(layers: Mapping[str, NestedWeight], plan: Plan) -> dict[str, LayerShape]:
    """The width, shape and kind of grid of every layer, which a format is asked about."""
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
    trained.require_eq_6(None)
    cell, cache = trained.cell, trained.setup.paths.cache
    assert cell.grid is not None
    model, tokenizer = load_model(cell.model, cache=cache, dtype=dtype or trained.dtype(), device=torch.device("cpu"))
    check_layers(cell, model, checkpoint.layers, trained.run.checkpoint)
    plans = searched_plans(trained.run, checkpoint.checksum)
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


def searched_plans(run: RunDir, checksum: str) -> dict[str, Mapping[str, str]]:
    """The plans that were searched for on these codes, by name; those of an earlier checkpoint are left out."""
    found = {}
    for path in sorted(run.plans.glob("*.json")):
        try:
            facts = read_json(path)
            if facts["search"]["checksum"] == checksum:
                found[path.stem] = {name: str(Slice.parse(part)) for name, part in facts["layers"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            print(f"{path} is no plan that was searched for, and is left out; delete it", file=sys.stderr)
    return found


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

    source = Source(model, tokenizer, plan, shapes_of(checkpoint.layers, plan), read, origin=cell.model)
    format.refuse(source)
    exactness = Exactness(format.scale_dtype)
    for name in tqdm(source.shapes, desc="comparing", unit="layer", leave=False):
        weight = read(name)
        exactness.add(weight, format.hold(name, weight))
    if exactness.inexact and not round_zeros:
        kept = "as codes" if format.scale_dtype is None else f"in {str(format.scale_dtype).removeprefix('torch.')}"
        raise UserError(
            f"{format.name} at {plan} is {exactness}: it keeps zeros {kept}, and those of {exactness.inexact} layers "
            f"are none; add --round-zeros to write it all the same, choose a format with real zeros (hqq or dense; "
            f"humming with --dtype float16; gguf at int4){trained_with(parts.values())}"
        )
    notes = list(format.notes(source)) if isinstance(format, Noted) else []
    record = Record(format.name, plan, exactness, notes, _facts(trained, checkpoint))
    with whole(folder) as beside:
        format.write(beside, source, lambda name: format.hold(name, read(name)))
        write_json(beside / "export.json", record.dump())
    return record


def trained_with(parts: Iterable[Slice]) -> str:
    """The grids whose zeros are codes in every slice that is read, as the end of a message."""
    narrowest = min(part.bits for part in parts)
    name = next((name for name, bits in ALIGNMENTS.items() if bits <= narrowest), None)
    return "" if name is None else f", or train with grid.zero={name}"


def readable(trained: Trained, checkpoint: NestedCheckpoint, plan: Plan) -> Plan:
    """A plan with its widths; UserError for one that the checkpoint cannot be read at."""
    if str(plan) == FULL:
        raise UserError("full is the model before it was quantized; choose a width such as int4")
    trained.require_eq_6(plan)
    if trained.cell.objective is not None and trained.cell.objective.uses_extra_precision:
        plan = trained.setup.readout.plan_of(trained.cell, plan)  # int2 is what a run measures as int2
    if plan.strategy is not None:
        asked = trained.setup.readout.searched(plan)
        found = found_plan(trained.run, trained.setup.readout, asked)
        if found is None:
            raise UserError(
                f"{trained.cell.id} has no plan {plan} that was searched for with these settings; run `matquant search "
                f"{plan}` with the cell's overrides first"
            )
        plan = asked.found(found["layers"])
    if plan.rule != EQ_6:
        raise UserError(f"{plan} slices by {plan.rule}, and exports hold slices by Eq. 6 alone; {by_eq_6(plan)}")
    for name, part in slices_of(plan, checkpoint.layers).items():
        bits = checkpoint.layers[name].parent_bits
        if part.bits > bits or (part.extra_precision and part.bits == bits):
            raise UserError(f"{plan} reads {name} at {part}, and its parent is int{bits}; choose int{bits} or narrower")
    return plan


def _facts(trained: Trained, checkpoint: NestedCheckpoint) -> dict[str, Any]:
    return {
        "cell_id": trained.cell.id,
        "cell": without_folders(trained.cell.model_dump(mode="json")),
        "sources": dict(recorded_sources(trained.run)),
        "checksum": checkpoint.checksum,
        **source_commit(),
        "versions": library_versions(),
    }


def without_folders(facts: Any) -> Any:
    """Facts in which of every absolute path the last name is kept: a published folder says nothing of a machine.

    The id of the cell is that of the whole paths.
    """
    match facts:
        case str():
            path = Path(facts).expanduser()
            return path.name if path.is_absolute() else facts
        case Mapping():
            return {name: without_folders(value) for name, value in facts.items()}
        case list():
            return [without_folders(value) for value in facts]
        case _:
            return facts


def _write_card(trained: Trained, folder: Path) -> None:
    """The model card, written by the room that reads results."""
    import_module(CARD).write_card(trained.cell, trained.setup, folder)


def format_named(name: str) -> Format:
    module, _, kind = FORMATS[name].partition(":")
    return getattr(import_module(module), kind)()


def main(arguments: Sequence[str]) -> int | None:
    given = parse("export", arguments)
    overrides = [word for word in given.words if is_override(word)]
    words = [word for word in given.words if not is_override(word)]
    needs_plan = given.format not in (NESTED, MATGPTQ)
    cell, plan, folder = split(words, given.format, has_overrides=bool(overrides), needs_plan=needs_plan)
    trained = find_trained(cell, overrides)
    if given.format == MATGPTQ:
        matgptq = import_module("matquant.serving.engines.matgptq_export")
        record = matgptq.export_matgptq(trained, folder, dtype=given.dtype)
        print(f"{folder}: every width of {trained.cell.id} as {record.format}, {record.exactness}")
    elif plan is None:
        export_nested(trained, folder, dtype=given.dtype)
        _track(trained, folder)
        print(f"{folder}: every width of {trained.cell.id}; matquant.load({str(folder)!r}, 'int4') reads one")
    elif given.format == LM_EVAL:
        import_module("evaluation.export").export_for_lm_eval(trained.cell, trained.setup, plan, folder)
    else:
        record = export_readout(
            trained, format_named(given.format), plan, folder, round_zeros=given.round_zeros, dtype=given.dtype
        )
        print(f"{folder}: {trained.cell.id} at {record.plan} as {record.format}, {record.exactness}")
        for note in record.notes:
            print(note)
    return None


def _track(trained: Trained, folder: Path) -> None:
    """Tells a tracker of a folder of every width."""
    made = nested_artifact(folder, trained.run)
    with tracking(trained.cell, trained.setup, "export") as tracker:
        tracker.summarize({"nested/megabytes": sum(path.stat().st_size for path in made.files.values()) / 1e6})
        tracker.keep(made)


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
