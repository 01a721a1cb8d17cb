"""Stage one: a cell becomes a nested checkpoint.  What is on disk already is not computed again."""

from __future__ import annotations

import logging
from typing import assert_never

import torch

from matquant.algorithms import gptq, minmax, omniquant, qat, range_searched
from matquant.algorithms.calibration import Shelf
from matquant.algorithms.progress import Layers
from matquant.codes.quantizers import DTYPES
from matquant.config.cell import Cell, ForeignBase, GPTQBase, MinMaxBase, NoBase, OmniQuantBase, QATBase, SearchBase
from matquant.config.setup import Setup
from matquant.models.devices import deterministic, pick_device, say_what_it_costs
from matquant.models.loading import load_model
from matquant.models.text.tokens import training_tokens
from matquant.parallel import distributed
from matquant.parallel.distributed import World, check_ranks
from matquant.runs.checkpoint import has_checkpoint, save_checkpoint
from matquant.runs.files import write_json
from matquant.runs.folder import RunDir
from matquant.runs.sources import claim, present_sources, recorded_sources
from matquant.runs.status import Beat, silent
from matquant.runs.tracked.artifacts import checkpoint_artifact
from matquant.runs.tracking import Tracker
from matquant.training.clock import timed
from matquant.training.progress import DiskProgress

log = logging.getLogger(__name__)


def train(cell: Cell, setup: Setup, tracker: Tracker, beat: Beat = silent) -> None:
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
    progress = DiskProgress(cell, setup, tracker, beat, world)
    with timed(run, is_main=world.is_main):
        try:
            layers = _same_bits(cell, setup, progress, world)
        finally:
            progress.bar.close()
    if world.is_main:
        save_checkpoint(run.checkpoint, cell, layers, recorded_sources(run))
        if (made := checkpoint_artifact(run)) is not None:
            tracker.keep(made)
        run.clear_state()
    world.barrier()


def to_train(cell: Cell, setup: Setup) -> bool:
    """True if the cell needs a checkpoint and has none yet."""
    if isinstance(cell.base, NoBase | ForeignBase):
        return False
    return not has_checkpoint(RunDir(setup.paths.runs, cell.id).checkpoint)


def _same_bits(cell: Cell, setup: Setup, progress: DiskProgress, world: World) -> Layers:
    """Fits with operations that give the same bits in every run; with others, and a warning, where a model needs one.

    What is finished by then is kept, as after any interruption.
    """
    try:
        with deterministic(world.device(pick_device(setup))):
            return _fit(cell, setup, progress, world)
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).partition(",")[0]
    # Out here, where nothing holds the model that failed.
    log.warning("%s: another run of %s on a GPU may differ from this one in some codes", reason, cell.id)
    return _fit(cell, setup, progress, world)


def _fit(cell: Cell, setup: Setup, progress: DiskProgress, world: World) -> Layers:
    assert cell.objective is not None
    assert cell.grid is not None
    assert cell.scope is not None
    device = world.device(pick_device(setup))
    if isinstance(cell.base, OmniQuantBase | GPTQBase | QATBase):
        say_what_it_costs(cell.base.compute_dtype, device, "base.compute_dtype", "another cell")
    # Several ranks share a model that one device may not hold: each reads it on its CPU and moves its shards.
    place = device if world.size == 1 else torch.device("cpu")
    before = present_sources(cell, setup.paths.cache) if world.is_main else {}
    model, tokenizer = load_model(cell.model, cache=setup.paths.cache, dtype=cell.model.dtype, device=place)
    tokens = training_tokens(cell, tokenizer)
    if world.is_main:
        claim(cell, setup, before)
    match cell.base:
        case MinMaxBase():
            return minmax.fit(
                model, parent_bits=cell.objective.parent_bits, scope=cell.scope, grid=cell.grid, progress=progress
            )
        case SearchBase() as base:
            settings = range_searched.Settings(base, cell.objective, cell.scope, cell.grid)
            return range_searched.fit(model, tokens, settings, progress)
        case OmniQuantBase() as base:
            shelf = _shelf(base, cell, setup)
            settings = omniquant.Settings(base, cell.objective, cell.scope, cell.grid, cell.seed, shelf)
            return omniquant.fit(model, tokens, settings, progress)
        case GPTQBase() as base:
            settings = gptq.Settings(base, cell.objective, cell.scope, cell.grid, _shelf(base, cell, setup))
            return gptq.fit(model, tokens, settings, progress)
        case QATBase() as base:
            settings = qat.Settings(base, cell.objective, cell.scope, cell.grid, cell.seed, world, device.type)
            return qat.fit(model, tokens, settings, progress)
        case NoBase() | ForeignBase():
            raise AssertionError("nothing of ours is quantized, and nothing trained")
        case _:
            assert_never(cell.base)


def _shelf(base: OmniQuantBase | GPTQBase, cell: Cell, setup: Setup) -> Shelf:
    """The place where a block-wise algorithm keeps activations."""
    state = RunDir(setup.paths.runs, cell.id).state
    state.mkdir(parents=True, exist_ok=True)
    return Shelf(DTYPES[base.activation_dtype], setup.activations, state)
