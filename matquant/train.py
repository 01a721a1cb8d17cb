"""Stage one: a cell becomes a nested checkpoint.  What is on disk already is not computed again."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, assert_never

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from matquant import distributed, stopping
from matquant.algorithms import Layers, gptq, minmax, omniquant, qat
from matquant.calibration import Shelf
from matquant.cell import Cell, GPTQBase, MinMaxBase, NoBase, OmniQuantBase, QATBase
from matquant.checkpoint import has_checkpoint, load_layers, save_checkpoint, save_layers
from matquant.data import token_blocks
from matquant.devices import pick_device, say_what_it_costs
from matquant.distributed import ALONE, World, check_ranks
from matquant.extra_precision import code_histogram, overflow_shares
from matquant.models import load_model
from matquant.quantizers import DTYPES
from matquant.runs import RunDir, write_json
from matquant.setup import Setup
from matquant.sharding import load_tensors, save_tensors
from matquant.status import Reporter
from matquant.stopping import Stopped
from matquant.tracking import Tracker

log = logging.getLogger(__name__)


class DiskProgress:
    """`Progress` in a run folder: finished pieces as safetensors, losses in train.jsonl and the tracker, and a bar.

    Of several ranks each writes its shards of a training state; everything else is the main one's, which reports.
    """

    def __init__(
        self, cell: Cell, setup: Setup, tracker: Tracker, reporter: Reporter | None = None, world: World = ALONE
    ) -> None:
        assert cell.grid is not None
        self.run, self.tracker, self.world = RunDir(setup.paths.runs, cell.id), tracker, world
        self.reporter = reporter
        self.scale_dtype = cell.grid.scale_dtype
        # Several ranks train a model that leaves their GPUs little room, and their layers only go to the checkpoint.
        self.device = str(pick_device(setup)) if world.size == 1 else "cpu"
        self.save_every_s, self.saved = 60 * setup.save_every_min, time.monotonic()
        self.bar = tqdm(desc=f"train {cell.id}", dynamic_ncols=True, total=0, disable=not world.is_main)

    piece: str | None = None

    def resume(self, piece: str, compute: Callable[[], Layers]) -> Layers:
        path = self.run.state / f"{piece}.safetensors"
        if not self.world.broadcast(path.exists()):
            if self.world.is_main:
                # Lines of an attempt at this piece that was killed.
                self.run.rewind_log(lambda record: record.get("piece") != piece)
            self.piece = piece
            layers = compute()
            if self.world.is_main:
                # What training did to the codes: the data of Figures 1c and 4.
                self.log({**overflow_shares(layers), "histogram": code_histogram(layers)})
                save_layers(path, layers, scale_dtype=self.scale_dtype)
            (stop,) = self.world.any(stopping.requested())
            if stop:
                raise Stopped(f"stopped after {piece}, as asked; the state is saved")
        # Read back even when just computed, so that both roads lead through the same stored bits.
        return load_layers(path, device=self.device) if self.world.is_main else {}

    def load(self, state: Mapping[str, Tensor]) -> bool:
        saved = self.world.broadcast(self.run.training_states()[-1:])
        for folder in saved:
            load_tensors(folder, state, self.world)
        first_step = int(state["step"])
        if self.world.is_main:
            self.run.rewind_log(lambda record: record.get("step", first_step) < first_step)
        return bool(saved)

    def save(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        is_due = self.world.is_main and time.monotonic() - self.saved >= self.save_every_s
        is_time = stopping.hurried() or is_due
        stop, is_time = self.world.any(stopping.requested(), is_time)
        if stop or is_time:
            self._write(state())
            self.saved = time.monotonic()
        if stop:
            raise Stopped("stopped after a step, as asked; the state is saved")

    def _write(self, state: Mapping[str, Tensor]) -> None:
        """Writes a training state, and removes those before it once it is complete.

        No rank goes on before it is in place: one that stops then may end the job and with it the others.
        """
        folder = self.run.training_state(int(state["step"]))
        beside = folder.with_name(f".{folder.name}.tmp")
        if self.world.is_main:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        self.world.barrier()
        save_tensors(beside, state, self.world)
        if self.world.is_main:
            beside.rename(folder)
            for other in self.run.state.glob("step-*"):
                if other != folder:
                    shutil.rmtree(other)
        self.world.barrier()

    def log(self, metrics: Mapping[str, Any]) -> None:
        if not self.world.is_main:
            return
        self.run.append_log({**({"piece": self.piece} if self.piece else {}), **metrics})
        self.tracker.log({f"train/{name}": value for name, value in metrics.items()})

    def tick(self, done: int, total: int, note: str) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        self.bar.set_postfix_str(note)
        if self.reporter is not None:
            self.reporter.beat(done, total)


def train(cell: Cell, setup: Setup, tracker: Tracker) -> None:
    """Writes the cell's checkpoint, unless it exists or the cell is not quantized.

    Where several ranks train together all of them call this, and all return when the checkpoint is there.
    """
    world = distributed.world()
    run = RunDir(setup.paths.runs, cell.id)
    if not world.broadcast(to_train(cell, setup)):
        return
    check_ranks(cell, world)
    if world.is_main:
        write_json(run.cell, cell.model_dump(mode="json"))
    with run.stage("train") if world.is_main else nullcontext() as reporter:
        progress = DiskProgress(cell, setup, tracker, reporter, world)
        try:
            layers = _fit(cell, setup, progress, world)
        finally:
            progress.bar.close()
        if world.is_main:
            save_checkpoint(run.checkpoint, cell, layers)
    if world.is_main:
        run.clear_state()
    world.barrier()


def to_train(cell: Cell, setup: Setup) -> bool:
    """Whether the cell is to have a checkpoint and has none yet."""
    return cell.base.kind != "none" and not has_checkpoint(RunDir(setup.paths.runs, cell.id).checkpoint)


def _fit(cell: Cell, setup: Setup, progress: DiskProgress, world: World) -> Layers:
    assert cell.objective is not None
    assert cell.grid is not None
    assert cell.scope is not None
    device = world.device(pick_device(setup))
    if isinstance(cell.base, OmniQuantBase | GPTQBase | QATBase):
        say_what_it_costs(cell.base.compute_dtype, device, "base.compute_dtype", "another cell")
    # Several ranks share a model that one device may not hold: each reads it on its CPU and moves its shards.
    place = device if world.size == 1 else torch.device("cpu")
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype=cell.model.dtype, device=place)
    match cell.base:
        case MinMaxBase():
            return minmax.fit(
                model, parent_bits=cell.objective.parent_bits, scope=cell.scope, grid=cell.grid, progress=progress
            )
        case OmniQuantBase() as base:
            shelf = _shelf(base, cell, setup)
            settings = omniquant.Settings(base, cell.objective, cell.scope, cell.grid, cell.seed, shelf)
            return omniquant.fit(model, _tokens(cell, tokenizer), settings, progress)
        case GPTQBase() as base:
            settings = gptq.Settings(base, cell.objective, cell.scope, cell.grid, _shelf(base, cell, setup))
            return gptq.fit(model, _tokens(cell, tokenizer), settings, progress)
        case QATBase() as base:
            settings = qat.Settings(base, cell.objective, cell.scope, cell.grid, cell.seed, world, device.type)
            return qat.fit(model, _tokens(cell, tokenizer), settings, progress)
        case NoBase():
            raise AssertionError("a cell without quantization has nothing to train")
        case _:
            assert_never(cell.base)


def _tokens(cell: Cell, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The calibration or training text of a cell."""
    assert cell.data is not None
    return token_blocks(cell.data, tokenizer, "train", seed=cell.seed, add_bos=cell.model.add_bos)


def _shelf(base: OmniQuantBase | GPTQBase, cell: Cell, setup: Setup) -> Shelf:
    """Where a block-wise algorithm keeps activations."""
    state = RunDir(setup.paths.runs, cell.id).state
    state.mkdir(parents=True, exist_ok=True)
    return Shelf(DTYPES[base.activation_dtype], setup.activations, state)
