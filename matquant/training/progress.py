"""Progress on disk: the finished pieces of a fit, its training states, its log and its bar."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from matquant.algorithms.progress import WHOLE_MODEL, Layers
from matquant.codes.extra_precision import code_histogram, overflow_shares
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.disk import writing
from matquant.models.devices import pick_device
from matquant.parallel.distributed import ALONE, World
from matquant.parallel.sharding import load_tensors, save_tensors
from matquant.runs import stopping
from matquant.runs.bars import bar
from matquant.runs.checkpoint import load_layers, save_layers
from matquant.runs.folder import RunDir
from matquant.runs.status import Beat, silent
from matquant.runs.stopping import Stopped
from matquant.runs.tracking import Tracker


class DiskProgress:
    """`Progress` in a run folder: finished pieces as safetensors, losses in train.jsonl and the tracker, and a bar.

    Each of several ranks writes its shards of a training state.  The main rank writes everything else, and reports.
    """

    def __init__(self, cell: Cell, setup: Setup, tracker: Tracker, beat: Beat = silent, world: World = ALONE) -> None:
        assert cell.grid is not None
        self.run, self.tracker, self.world = RunDir(setup.paths.runs, cell.id), tracker, world
        self.beat = beat
        self.scale_dtype = cell.grid.scale_dtype
        # Several ranks train a model that leaves their GPUs little room, and their layers only go to the checkpoint.
        self.device = str(pick_device(setup)) if world.size == 1 else "cpu"
        self.save_every_s, self.saved = 60 * setup.save_every_min, time.monotonic()
        self.bar = bar(f"train {cell.id}", disable=not world.is_main)

    piece: str | None = None

    def resume(self, piece: str, compute: Callable[[], Layers]) -> Layers:
        path = self.run.state / f"{piece}.safetensors"
        if not self.world.broadcast(path.exists()):
            if self.world.is_main:
                # Drops the lines of an earlier attempt at this piece, which was killed.
                self.run.rewind_log(lambda record: record.get("piece") != piece)
            self.piece = piece
            layers = compute()
            if self.world.is_main:
                # The codes after training: the data of Figures 1c and 4.
                self._record({**overflow_shares(layers), "histogram": code_histogram(layers)})
                save_layers(path, layers, scale_dtype=self.scale_dtype)
            (stop,) = self.world.any(stopping.requested())
            if stop:
                raise Stopped(f"stopped after {piece}, as asked; the state is saved")
        # Read back even when just computed, so that a new and a resumed run use the same stored bits.
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

        No rank goes on before the state is in place: a rank that stops may end the job, and with it the other ranks.
        """
        folder = self.run.training_state(int(state["step"]))
        beside = folder.with_name(f".{folder.name}.tmp")
        if self.world.is_main:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        self.world.barrier()
        try:
            with writing(folder):
                save_tensors(beside, state, self.world)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if self.world.is_main:
            beside.rename(folder)
            for other in self.run.state.glob("step-*"):
                if other != folder:
                    shutil.rmtree(other)
        self.world.barrier()

    def log(self, metrics: Mapping[str, Any]) -> None:
        if self.world.is_main:
            self._append(metrics)
            self.tracker.log(_of_training(metrics))

    def _record(self, facts: Mapping[str, Any]) -> None:
        """Logs the facts of a finished piece; those of a model that is one piece are no curve but final numbers."""
        self._append(facts)
        (self.tracker.summarize if self.piece == WHOLE_MODEL else self.tracker.log)(_of_training(facts))

    def _append(self, metrics: Mapping[str, Any]) -> None:
        self.run.append_log({**({"piece": self.piece} if self.piece else {}), **metrics})

    def tick(self, done: int, total: int, note: str) -> None:
        self.bar.total = total
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
        self.beat(done, total)


def _of_training(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {f"train/{name}": value for name, value in metrics.items()}
