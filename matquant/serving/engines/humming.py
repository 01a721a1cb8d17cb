"""A read-out for vLLM's Humming kernels: 1 to 8 bits a weight, with zeros that are no integers.

    vllm serve DIR

`config.json` tells vLLM the width of every layer (`dynamic`), and which linear layers are not quantized at all.  Names
there are patterns over vLLM's own names, in which q, k, v and gate, up are one layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matquant.codes.sliced import SlicedWeight
from matquant.models.layers.experts import is_of_expert
from matquant.models.layers.linear_layers import LinearOfConv1D
from matquant.serving.engines.formats import (
    FUSED,
    LayerShape,
    Source,
    in_dtype,
    refuse_layers,
    require_fused_alike,
)
from matquant.serving.engines.humming_layout import METHOD, schema_of, tensors_of, why_not
from matquant.serving.engines.model_folder import write_model

FUSED_NAMES = {one: fused for fused, group in zip(("qkv_proj", "gate_up_proj"), FUSED, strict=True) for one in group}
"""The names under which vLLM multiplies layers as one."""
DENSE = "export dense, or nested and serve that with `vllm serve DIR --quantization matquant`"


@dataclass
class Humming:
    """Codes, scales and zeros as the kernels take them, one schema a width."""

    name: str = METHOD
    scale_dtype: torch.dtype | None = torch.bfloat16

    def refuse(self, source: Source) -> None:
        shapes = source.shapes
        # The kernels keep scales and zeros in the dtype that the model is served in, and know no float32.
        self.scale_dtype = torch.float16 if source.model.dtype == torch.float16 else torch.bfloat16
        refuse_layers(
            self.name,
            "base.transformation divides their weights by input, and the kernels have one scale for a group of inputs",
            (name for name, shape in shapes.items() if shape.has_transform),
            "export dense, or a cell of base.transformation=false",
        )
        modules = dict(source.model.named_modules())
        refuse_layers(
            self.name,
            "checkpoints keep them transposed, or all experts in one tensor",
            (name for name in shapes if is_of_expert(name) or isinstance(modules.get(name), LinearOfConv1D)),
            "export dense",
        )
        for name, shape in shapes.items():
            if reason := why_not(shape.shape, shape.group_size):
                refuse_layers(self.name, reason, [name], DENSE)
        require_fused_alike(shapes, self.name)

    def hold(self, name: str, weight: SlicedWeight) -> SlicedWeight:
        assert self.scale_dtype is not None
        return in_dtype(weight, self.scale_dtype)

    def write(self, folder: Path, source: Source, held: Callable[[str], SlicedWeight]) -> None:
        assert self.scale_dtype is not None
        tensors: dict[str, Tensor] = {}
        for name in source.shapes:
            parts = tensors_of(held(name), self.scale_dtype)
            tensors |= {f"{name}.{kind}": tensor for kind, tensor in parts.items()}
        write_model(
            folder, source.model, source.shapes, quantization_config=configuration(source.shapes), tensors=tensors
        )
        source.tokenizer.save_pretrained(folder)


def configuration(shapes: Mapping[str, LayerShape]) -> dict[str, Any]:
    """The `quantization_config` of a folder: the schema of most layers, and what others have different."""
    schemas = {name: schema_of(bits_of(shape), shape.group_size) for name, shape in shapes.items()}
    alike: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for name, schema in schemas.items():
        alike.setdefault(tuple(schema.items()), []).append(name)
    most = max(alike, key=lambda schema: len(alike[schema]))
    return {
        **dict(most),
        "dynamic": {
            # vLLM takes the first entry that fits a name.  One that begins with a minus leaves layers as they are.
            f"-:(?!{pattern(shapes)})": {},
            **{f"+:{pattern(names)}": dict(schema) for schema, names in alike.items() if schema != most},
        },
    }


def bits_of(shape: LayerShape) -> int:
    """The bits that a code needs: with extra precision one more."""
    return shape.part.bits + shape.part.extra_precision


def pattern(names: Iterable[str]) -> str:
    """A regular expression that fits the names of these layers, their fused names, and no others."""
    both = {one for name in names for one in (name, _fused(name))}
    by_kind = sorted((re.sub(r"\.\d+\.", ".#.", name, count=1), name) for name in both)
    kinds = []
    for kind, group in groupby(by_kind, key=lambda pair: pair[0]):
        numbers = sorted({int(found[1]) for _, name in group if (found := re.search(r"\.(\d+)\.", name))})
        # Escaped first: what is put in afterwards is an expression.
        kinds.append(re.escape(kind).replace(r"\#", f"(?:{'|'.join(map(str, numbers))})"))
    return f"(?:{'|'.join(kinds)})$"


def _fused(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{FUSED_NAMES.get(last, last)}"
