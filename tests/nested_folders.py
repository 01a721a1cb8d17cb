"""Nested folders of tiny models, written as the export writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from matquant.codes.nested import NestedWeight, nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec, Scope
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.loading import LoadedModel
from matquant.serving.nested.writer import write_nested

TOKENS = 1 + torch.arange(48).reshape(2, 24) % 31


def quantized(
    model: PreTrainedModel, *, grid: GridSpec | None = None, parent_bits: int = 8, scope: Scope = "ffn"
) -> dict[str, NestedWeight]:
    """The layers in scope on MinMax grids."""
    spec = grid or GridSpec(group_size=16)
    return {
        f"{block_name(model, index)}.{name}": nest(
            linear.weight.detach(), minmax_grid(linear.weight.detach(), parent_bits, spec), parent_bits
        )
        for index, block in enumerate(blocks(model))
        for name, linear in linears(block, scope).items()
    }


def written(
    folder: Path,
    loaded: LoadedModel,
    layers: Mapping[str, NestedWeight],
    *,
    plans: Mapping[str, Mapping[str, str]] | None = None,
    facts: Mapping[str, Any] | None = None,
    scale_dtype: str = "float32",
) -> Path:
    """A nested folder of some layers of a model."""
    folder.mkdir(parents=True)
    write_nested(
        folder, *loaded, layers, scale_dtype=scale_dtype, facts=facts or {"cell_id": "tiny"}, plans=plans or {}
    )
    return folder
