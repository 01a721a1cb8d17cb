"""Tiny trained cells to export, and what their checkpoints read: for the tests of formats."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from matquant.codes.layouts import slices_of
from matquant.codes.nested import NestedWeight, materialize, nest
from matquant.codes.quantizers import minmax_grid
from matquant.codes.sliced import sliced
from matquant.config.cell import GridSpec
from matquant.config.study import load_study
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.loading import LoadedModel, load_model
from matquant.notation import Plan
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.tracking import NoTracker
from matquant.serving.engines.formats import Source
from matquant.serving.export import Trained, shapes_of
from matquant.training.train import train
from tests.tiny import tiny_overrides

SYMMETRIC, ALIGNED, REAL = ("grid.symmetric=true",), ("grid.zero=aligned_int2",), ()
CHANNELS = (
    "grid=per_channel",
    "grid.zero=aligned_int2",
    "model.config.hidden_size=40",
    "model.config.intermediate_size=45",
)
"""Rows that fill no whole number of words, with one group each."""
ALL_LINEAR = ("scope=ffn_attention", "+model.config.attention_bias=true")
TOKENS = torch.arange(40)[None]


def trained(folder: Path, *overrides: str) -> Trained:
    """A cell of the tiny model, rounded to the nearest codes."""
    study = load_study([*tiny_overrides(folder), "base=minmax", "bits=int8", *overrides])
    cell = study.one_cell()
    train(cell, study.setup, NoTracker())
    return Trained(cell, study.setup)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(TOKENS).logits


def ours(cell: Trained, plan: Plan) -> Tensor:
    """The logits of what a checkpoint reads."""
    model, _ = load_model(cell.cell.model, cache=cell.setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    return logits(materialize(model, load_checkpoint(cell.run.checkpoint, cell.cell).layers, plan))


def mixed(folder: Path, cell: Trained, widths: dict[str, str]) -> Plan:
    """A plan with a width for every layer whose path ends in a key of `widths`, and int4 for all others."""
    layers = load_checkpoint(cell.run.checkpoint, cell.cell).layers
    named = {name: next((width for end, width in widths.items() if name.endswith(end)), "int4") for name in layers}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps({"layers": named}))
    return Plan.parse(str(path))


def nested_layers(model: nn.Module, *, symmetric: bool = True) -> dict[str, NestedWeight]:
    """All linear layers of a model's blocks, rounded to int8 codes."""
    spec = GridSpec(group_size=None, symmetric=symmetric)
    return {
        f"{block_name(model, number)}.{name}": nest(linear.weight, minmax_grid(linear.weight, 8, spec), 8)
        for number, block in enumerate(blocks(model))
        for name, linear in linears(block, "ffn_attention").items()
    }


def source(loaded: LoadedModel, layers: dict[str, NestedWeight], plan: Plan) -> Source:
    """The files of a format, for a model that no cell was trained of."""
    parts = slices_of(plan, layers)
    shapes = shapes_of(layers, plan)
    return Source(loaded.model, loaded.tokenizer, plan, shapes, lambda name: sliced(layers[name], parts[name]))
