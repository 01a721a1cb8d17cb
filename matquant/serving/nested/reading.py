"""Reads a nested folder into a model that lies around its quantized layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from matquant.codes.nested import bias_of
from matquant.errors import UserError
from matquant.models.layers.experts import separate_experts
from matquant.models.layers.linear_layers import as_linear
from matquant.models.layers.stored_layers import as_quantized
from matquant.notation import Plan
from matquant.serving.nested.folder import AGAIN, NestedFolder
from matquant.serving.nested.packed import PackedLinear


@dataclass(frozen=True)
class Reading:
    """The source of a loaded model and the way it was read: kept with the model as `matquant_reading`."""

    folder: NestedFolder
    plan: Plan
    packed: bool


def reading_of(model: nn.Module) -> Reading:
    """The way a model was read; UserError for one that is not out of a nested folder."""
    found = getattr(model, "matquant_reading", None)
    if not isinstance(found, Reading):
        raise UserError(
            f"this {type(model).__name__} was not read from a nested folder; load it with matquant.load(DIR, 'int3')"
        )
    return found


def read_into(model: nn.Module, folder: NestedFolder, plan: Plan, *, packed: bool) -> None:
    """Lets a model hold a plan, and remember it."""
    (pack if packed else expand)(model, folder, plan)
    kept: Any = model
    kept.matquant_reading = Reading(folder, plan, packed)


def expand(model: nn.Module, folder: NestedFolder, plan: Plan) -> None:
    """Overwrites the quantized layers of a model with what a plan reads, in place, as `materialize` does."""
    with as_quantized(model), torch.no_grad():
        layers = {name: _linear(model, name, folder) for name in folder.layers}
        device = next(iter(layers.values())).weight.device
        for name, read in folder.read_at(plan, device=device):
            affine = read.affine()
            layers[name].weight.copy_(affine.weight)
            if affine.bias is not None:
                bias_of(layers[name]).copy_(affine.bias)


def pack(model: nn.Module, folder: NestedFolder, plan: Plan) -> None:
    """Replaces the quantized layers of a model by packed ones, or lets packed ones hold another plan."""
    as_linear(model)
    separate_experts(model)
    # All of them are looked at before the first is replaced.
    layers = {name: _packed_or_linear(model, name, folder) for name in folder.layers}
    device = next(model.parameters()).device
    with torch.no_grad():
        for name, read in folder.read_at(plan, device=device):
            layer = layers.pop(name)
            if isinstance(layer, PackedLinear):
                layer.read(read)
            else:
                model.set_submodule(name, PackedLinear(layer, read))


def _packed_or_linear(model: nn.Module, name: str, folder: NestedFolder) -> PackedLinear | nn.Linear:
    layer = _module(model, name, folder)
    return layer if isinstance(layer, PackedLinear) else _linear(model, name, folder)


def _module(model: nn.Module, name: str, folder: NestedFolder) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"the model of {folder.title} has no layer {name}, which its codes are of; {AGAIN}") from error


def _linear(model: nn.Module, name: str, folder: NestedFolder) -> nn.Linear:
    """A layer of the model that a plan is read into; UserError if it is not the one that was quantized."""
    layer, shape = _module(model, name, folder), folder.layers[name].shape
    if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != shape:
        found = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else type(layer).__name__
        raise UserError(f"{name} is {found} in the model of {folder.title} and {shape} in its codes; {AGAIN}")
    return layer
