"""Round to nearest between ends that a search chose, group by group (`matquant.codes.range_search`): no training.

The rival that MinMax is compared with fairly: the ends suit what an objective reads, for explicit baselines and for
nested parents alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from jaxtyping import Int
from torch import Tensor, nn

from matquant.algorithms.importance import Importance, importance_of
from matquant.algorithms.progress import Layers, Progress
from matquant.codes.nested import NestedWeight, nest
from matquant.codes.range_search import searched_grid
from matquant.config.cell import GridSpec, Scope, SearchBase
from matquant.models.layers.families import block_name, blocks, linears
from matquant.notation import Objective


@dataclass(frozen=True)
class Settings:
    """The settings of a search for ranges."""

    base: SearchBase
    objective: Objective
    scope: Scope
    grid: GridSpec


def fit(model: nn.Module, tokens: Int[Tensor, "sequences tokens"], settings: Settings, progress: Progress) -> Layers:
    """Q(w, c) on a searched grid for every linear layer in scope, block by block."""
    layers: dict[str, NestedWeight] = {}
    found = blocks(model)

    @cache  # for the first block that is still to be searched, or for none
    def importance() -> Mapping[str, Importance]:
        if settings.base.importance == "plain":
            return {}
        size, scope = settings.base.batch_size, settings.scope
        return importance_of(
            model,
            tokens,
            scope,
            batch_size=size,
            report=lambda done: progress.tick(0, len(found), f"inputs of {done} of {len(tokens)} sequences"),
        )

    for index, block in enumerate(found):
        name = block_name(model, index)
        finished = progress.resume(name, lambda block=block, name=name: _searched(block, name, importance, settings))
        layers |= {f"{name}.{path}": nested for path, nested in finished.items()}
        progress.tick(index + 1, len(found), name)
    return layers


def _searched(
    block: nn.Module,
    name: str,
    importance: Callable[[], Mapping[str, Importance]],
    settings: Settings,
) -> Layers:
    """The nested weights of one block, by path inside it."""
    base, objective = settings.base, settings.objective
    layers = {}
    for path, linear in linears(block, settings.scope).items():
        grid = searched_grid(
            linear.weight,
            objective,
            settings.grid,
            reach=base.clipping_reach,
            importance=importance().get(f"{name}.{path}"),
        )
        layers[path] = nest(linear.weight, grid, objective.parent_bits)
    return layers
