"""A read-out as an ordinary Hugging Face folder, for whatever reads those; its weights are expanded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from matquant.codes.nested import bias_of
from matquant.codes.sliced import SlicedWeight
from matquant.models.layers.stored_layers import as_quantized
from matquant.serving.engines.formats import Source, refuse_layers


@dataclass(frozen=True)
class Dense:
    """Expanded weights, in the dtype of the model around them."""

    name: str = "dense"
    scale_dtype: torch.dtype | None = None

    def refuse(self, source: Source) -> None:
        """A transformation with a shift gives layers a bias, for which most architectures have no place."""
        refuse_layers(
            self.name,
            "base.transformation=true gives them a bias, and their architecture has none there",
            (
                name
                for name, shape in source.shapes.items()
                if shape.has_transform
                and source.read(name).affine().bias is not None
                and source.model.get_submodule(name).bias is None
            ),
            "export a cell of base.transformation=published or base.transformation=false, or a nested folder",
        )

    def notes(self, source: Source) -> Iterator[str]:
        """The rounding of the weights themselves, which have no grid here."""
        dtype = source.model.dtype
        if dtype != torch.float32:
            name = str(dtype).removeprefix("torch.")
            yield f"weights are rounded to {name}, as the model around them is; --dtype float32 keeps every bit of them"

    def hold(self, name: str, weight: SlicedWeight) -> SlicedWeight:
        return weight

    def write(self, folder: Path, source: Source, held: Callable[[str], SlicedWeight]) -> None:
        with as_quantized(source.model), torch.no_grad():
            for name in source.shapes:
                affine, linear = held(name).affine(), source.model.get_submodule(name)
                linear.get_parameter("weight").copy_(affine.weight)
                if affine.bias is not None:
                    bias_of(linear).copy_(affine.bias)
        source.model.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)
