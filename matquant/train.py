"""Stage one: a cell becomes a nested checkpoint.  What is on disk already is not computed again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import assert_never

import torch
from tqdm import tqdm

from matquant.algorithms import Layers, minmax, omniquant
from matquant.cell import Cell, MinMaxBase, NoBase, OmniQuantBase, Setup
from matquant.checkpoint import has_checkpoint, load_layers, save_checkpoint, save_layers
from matquant.data import token_blocks
from matquant.models import load_model
from matquant.runs import RunDir, write_json
from matquant.tracking import Tracker

log = logging.getLogger(__name__)


class DiskProgress:
    """`Progress` in a run folder: finished pieces as safetensors, losses in train.jsonl and the tracker, and a bar."""

    def __init__(self, run: RunDir, tracker: Tracker, *, scale_dtype: str, device: str, description: str) -> None:
        self.run, self.tracker, self.scale_dtype, self.device = run, tracker, scale_dtype, device
        self.bar = tqdm(desc=description, unit="block", dynamic_ncols=True, total=0)

    def resume(self, piece: str, compute: Callable[[], Layers]) -> Layers:
        path = self.run.state / f"{piece}.safetensors"
        if not path.exists():
            save_layers(path, compute(), scale_dtype=self.scale_dtype)
        # Read back even when just computed, so that both roads lead through the same stored bits.
        return load_layers(path, device=self.device)

    def log(self, metrics: Mapping[str, float | int | str]) -> None:
        self.run.append_log(metrics)
        self.tracker.log({f"train/{name}": value for name, value in metrics.items()})

    def tick(self, done: int, total: int, note: str) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        self.bar.set_postfix_str(note)


def train(cell: Cell, setup: Setup, tracker: Tracker) -> None:
    """Writes the cell's checkpoint, unless it exists or the cell is not quantized."""
    run = RunDir(setup.paths.runs, cell.id)
    if cell.base.kind == "none" or has_checkpoint(run.checkpoint):
        return
    assert cell.grid is not None
    write_json(run.cell, cell.model_dump(mode="json"))
    with run.stage("train"):
        finished = {path.stem.rpartition(".")[2] for path in run.state.glob("*.safetensors")}
        run.rewind_log(lambda record: str(record["block"]) in finished)
        description, device = f"train {cell.id}", str(pick_device(setup))
        progress = DiskProgress(run, tracker, scale_dtype=cell.grid.scale_dtype, device=device, description=description)
        try:
            save_checkpoint(run.checkpoint, cell, _fit(cell, setup, progress))
        finally:
            progress.bar.close()
    run.clear_state()


def pick_device(setup: Setup) -> torch.device:
    """`auto` is the GPU where there is one."""
    if setup.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(setup.device)


def _fit(cell: Cell, setup: Setup, progress: DiskProgress) -> Layers:
    assert cell.objective is not None
    assert cell.grid is not None
    assert cell.scope is not None
    device = pick_device(setup)
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype=cell.model.dtype, device=device)
    match cell.base:
        case MinMaxBase():
            return minmax.fit(
                model, parent_bits=cell.objective.parent_bits, scope=cell.scope, grid=cell.grid, progress=progress
            )
        case OmniQuantBase() as base:
            assert cell.data is not None
            tokens = token_blocks(cell.data, tokenizer, "train", seed=cell.seed, add_bos=cell.model.add_bos)
            settings = omniquant.Settings(base, cell.objective, cell.scope, cell.grid, cell.seed)
            return omniquant.fit(model, tokens, settings, progress)
        case NoBase():
            raise AssertionError("a cell without quantization has nothing to train")
        case _:
            assert_never(cell.base)
