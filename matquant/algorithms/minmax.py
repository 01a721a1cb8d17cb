"""Round to nearest on the MinMax grid: no training, no data, the control of every comparison."""

from __future__ import annotations

from torch import nn

from matquant.algorithms.progress import Layers, Progress
from matquant.codes.nested import nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec, Scope
from matquant.models.layers.families import block_name, blocks, linears


def fit(model: nn.Module, *, parent_bits: int, scope: Scope, grid: GridSpec, progress: Progress) -> Layers:
    """Q(w, c) of Eq. 1 for every linear layer in scope."""
    layers = {}
    found = blocks(model)
    for index, block in enumerate(found):
        for name, linear in linears(block, scope).items():
            layers[f"{block_name(model, index)}.{name}"] = nest(
                linear.weight, minmax_grid(linear.weight, parent_bits, grid), parent_bits
            )
        progress.tick(index + 1, len(found), "round to nearest")
    return layers
