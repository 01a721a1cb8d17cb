"""Stage one: a cell becomes a nested checkpoint.  What is on disk already is not computed again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, assert_never

import torch
from tqdm import tqdm

from matquant.algorithms import Layers, minmax, omniquant, qat
from matquant.calibration import Shelf
from matquant.cell import Cell, MinMaxBase, NoBase, OmniQuantBase, QATBase
from matquant.checkpoint import has_checkpoint, load_layers, save_checkpoint, save_layers
from matquant.data import token_blocks
from matquant.extra_precision import code_histogram, overflow_shares
from matquant.models import load_model
from matquant.quantizers import DTYPES
from matquant.runs import RunDir, write_beside, write_json
from matquant.setup import Setup
from matquant.status import Reporter
from matquant.stopping import give_way, requested
from matquant.tracking import Tracker

log = logging.getLogger(__name__)
TRAINING_STATE = "training.pt"


class DiskProgress:
    """`Progress` in a run folder: finished pieces as safetensors, losses in train.jsonl and the tracker, and a bar."""

    def __init__(self, cell: Cell, setup: Setup, tracker: Tracker, reporter: Reporter) -> None:
        assert cell.grid is not None
        self.reporter = reporter
        self.run, self.tracker = RunDir(setup.paths.runs, cell.id), tracker
        self.scale_dtype, self.device = cell.grid.scale_dtype, str(pick_device(setup))
        self.save_every_s, self.saved = 60 * setup.save_every_min, time.monotonic()
        self.bar = tqdm(desc=f"train {cell.id}", dynamic_ncols=True, total=0)

    piece: str | None = None

    def resume(self, piece: str, compute: Callable[[], Layers]) -> Layers:
        path = self.run.state / f"{piece}.safetensors"
        if not path.exists():
            # Lines of an attempt at this piece that was killed.
            self.run.rewind_log(lambda record: record.get("piece") != piece)
            self.piece = piece
            layers = compute()
            # What training did to the codes: the data of Figures 1c and 4.
            self.log({**overflow_shares(layers), "histogram": code_histogram(layers)})
            save_layers(path, layers, scale_dtype=self.scale_dtype)
            give_way(f"after {piece}")
        # Read back even when just computed, so that both roads lead through the same stored bits.
        return load_layers(path, device=self.device)

    def load(self) -> Mapping[str, Any] | None:
        path = self.run.state / TRAINING_STATE
        state = torch.load(path, map_location=self.device, weights_only=True) if path.exists() else None
        first_step = state["step"] if state else 0
        self.run.rewind_log(lambda record: record.get("step", first_step) < first_step)
        return state

    def save(self, state: Callable[[], Mapping[str, Any]]) -> None:
        if time.monotonic() - self.saved < self.save_every_s and not requested():
            return
        write_beside(self.run.state / TRAINING_STATE, lambda beside: torch.save(dict(state()), beside))
        self.saved = time.monotonic()
        give_way("after a step")

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.run.append_log({**({"piece": self.piece} if self.piece else {}), **metrics})
        self.tracker.log({f"train/{name}": value for name, value in metrics.items()})

    def tick(self, done: int, total: int, note: str) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        self.bar.set_postfix_str(note)
        self.reporter.beat(done, total)


def train(cell: Cell, setup: Setup, tracker: Tracker) -> None:
    """Writes the cell's checkpoint, unless it exists or the cell is not quantized."""
    run = RunDir(setup.paths.runs, cell.id)
    if cell.base.kind == "none" or has_checkpoint(run.checkpoint):
        return
    write_json(run.cell, cell.model_dump(mode="json"))
    with run.stage("train") as reporter:
        progress = DiskProgress(cell, setup, tracker, reporter)
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
            state = RunDir(setup.paths.runs, cell.id).state
            state.mkdir(parents=True, exist_ok=True)
            shelf = Shelf(DTYPES[base.activation_dtype], setup.activations, state)
            settings = omniquant.Settings(base, cell.objective, cell.scope, cell.grid, cell.seed, shelf)
            return omniquant.fit(model, tokens, settings, progress)
        case QATBase() as base:
            assert cell.data is not None
            tokens = token_blocks(cell.data, tokenizer, "train", seed=cell.seed, add_bos=cell.model.add_bos)
            return qat.fit(
                model, tokens, qat.Settings(base, cell.objective, cell.scope, cell.grid, cell.seed), progress
            )
        case NoBase():
            raise AssertionError("a cell without quantization has nothing to train")
        case _:
            assert_never(cell.base)
