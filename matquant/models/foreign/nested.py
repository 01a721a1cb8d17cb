"""Nested codes, as MatGPTQ packs them and as this program's own nested folders do: any width by Eq. 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from matquant.codes.nested import NestedWeight, Transform, undo
from matquant.codes.planes import planes_needed, sliced_planes
from matquant.codes.quantizers import Grid, dequantize
from matquant.codes.sliced import grid_of
from matquant.errors import UserError
from matquant.models.foreign.matgptq import MASTER_BITS, MIDDLE
from matquant.notation import Slice

PLANE = "plane."
"""The start of the name of a plane among the tensors of a layer; 1 is the most significant."""
TRANSFORM = "transform."

Tensors = Mapping[str, Tensor]
Facts = Mapping[str, Any]


def matgptq_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of a packed checkpoint of MatGPTQ, whose zero no file says."""
    scale = tensors["scales"].float()
    grid = Grid(scale, torch.full_like(scale, MIDDLE))
    return NestedWeight(tensors["qweight"], grid, MASTER_BITS).at(Slice(bits)).weight


def matquant_weight(tensors: Tensors, facts: Facts, bits: int) -> Float[Tensor, "out in"]:
    """A layer of a nested folder."""
    parent_bits, part = facts["parent_bits"], Slice(bits)
    planes = [tensors[f"{PLANE}{number}"] for number in range(1, planes_needed(part, parent_bits) + 1)]
    codes = sliced_planes(planes, part, parent_bits=parent_bits, columns=facts["columns"])
    grid = grid_of(Grid(tensors["scale"].float(), tensors["zero"].float()), part, parent_bits)
    if f"{TRANSFORM}bias" in tensors:
        raise UserError(
            f"{facts['layer']} of this nested folder has a bias for every width (base.transformation=true), which is "
            "not read here; measure the cell that it was exported from"
        )
    kinds = {key.removeprefix(TRANSFORM): tensors[key] for key in tensors if key.startswith(TRANSFORM)}
    return undo(dequantize(codes, grid), Transform(**kinds) if kinds else None).weight
