"""A nested checkpoint as MatGPTQ's plugin for vLLM has it: all widths in one folder, of which it serves one at a time.

The layout is told in `matquant.models.foreign.matgptq` (packed).  Its kernels multiply r-bit codes, less 2^(r-1), by a
scale of 16 bits: symmetric grids with a zero of 128, in groups of 32 or 128, at 2, 3, 4, 6 and 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matquant.codes.quantizers import DTYPES, Grid
from matquant.codes.sliced import SlicedWeight
from matquant.errors import UserError
from matquant.models.foreign.matgptq import MASTER_BITS, METHOD
from matquant.models.layers.experts import together
from matquant.models.layers.linear_layers import LinearOfConv1D, as_stored
from matquant.models.layers.stored_layers import parameter_of
from matquant.notation import Plan, Slice
from matquant.serving.engines.formats import FUSED, Record, Source, refuse_layers, require_fused_alike
from matquant.serving.export import Trained, export_readout

GROUP_SIZES = (32, 128)
ROWS = 16
"""The outputs that a kernel computes together."""
WIDTHS = "2, 3, 4, 6 or 8"
FIRST_BITS = 4
"""The width that a folder is served at until somebody edits its config.json, as MatGPTQ's own packer has it."""


def export_matgptq(trained: Trained, folder: Path, *, dtype: str | None) -> Record:
    """Writes a cell for MatGPTQ's plugin; UserError for what it cannot serve, before anything is read."""
    cell, stored = trained.cell, dtype or trained.dtype()
    if cell.objective is not None and cell.objective.parent_bits != MASTER_BITS:
        raise UserError(
            f"matgptq serves slices of {MASTER_BITS}-bit codes, and those of {cell.id} have "
            f"{cell.objective.parent_bits} bits; export a cell of bits=matquant"
        )
    if cell.objective is not None:
        trained.require_eq_6(None)
    if stored not in ("float16", "bfloat16"):
        raise UserError(
            f"matgptq computes in float16 or bfloat16, and {cell.model.name} is in {stored}; add --dtype bfloat16"
        )
    format: Any = MatGPTQ(DTYPES[stored])
    return export_readout(trained, format, Plan.parse(f"int{MASTER_BITS}"), folder, dtype=stored)


@dataclass(frozen=True)
class MatGPTQ:
    """The packed layout, with scales in the dtype of the model around them."""

    scale_dtype: torch.dtype
    name: str = "matgptq"

    def refuse(self, source: Source) -> None:
        """Everything that has no place in the layout, and what kernels or plugin do not serve."""
        shapes, model = source.shapes, source.model

        def refuse(why: str, names: Iterable[str], remedy: str) -> None:
            refuse_layers(self.name, why, names, remedy)

        refuse(
            "base.transformation=true divides their weights by input channel, and such weights lie on no grid",
            (name for name, shape in shapes.items() if shape.has_transform),
            "export a cell of base.transformation=false, or a nested folder",
        )
        refuse(
            f"it keeps {MASTER_BITS}-bit codes, and theirs are narrower",
            (name for name, shape in shapes.items() if shape.part != Slice(MASTER_BITS)),
            "export a cell of bits=matquant",
        )
        refuse(
            "it has no place for zeros, and theirs are not on the middle code",
            (name for name, shape in shapes.items() if not shape.is_symmetric),
            "train with grid.symmetric=true, or choose a format with real zeros (humming, hqq, dense) or nested",
        )
        sizes = group_sizes(source)
        refuse(
            "its kernels take groups of 32 or of 128, and the same for all layers",
            (name for name, size in sizes.items() if len(set(sizes.values())) > 1 or size not in GROUP_SIZES),
            "train with grid.group_size=128 or grid.group_size=32",
        )
        refuse(
            f"its kernels compute {ROWS} outputs together, which does not divide theirs",
            (name for name, shape in shapes.items() if shape.shape[0] % ROWS),
            "choose another format, such as dense",
        )
        refuse(
            "its plugin serves linear layers, and these are experts or Conv1D",
            (name for name in shapes if ".experts." in name or isinstance(model.get_submodule(name), LinearOfConv1D)),
            "choose another format, such as dense",
        )
        require_fused_alike(shapes, self.name)

    def hold(self, name: str, weight: SlicedWeight) -> SlicedWeight:
        stored = weight.grid.scale.to(self.scale_dtype).float()
        if not torch.allclose(stored, weight.grid.scale, rtol=torch.finfo(self.scale_dtype).eps, atol=0):
            raise UserError(f"scales of {name} are smaller or larger than {self.scale_dtype} has; add --dtype bfloat16")
        return weight._replace(grid=Grid(stored, weight.grid.zero))

    def write(self, folder: Path, source: Source, held: Callable[[str], SlicedWeight]) -> None:
        model, shapes = source.model, source.shapes
        config: Any = model.config
        (group_size,) = set(group_sizes(source).values())
        plain = unquantized(model, set(shapes))
        with as_stored(model), together(model):
            quantized = {parameter_of(model, name) for name in shapes}
            tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in quantized}
            for name in shapes:
                tensors |= self._tensors(name, held(name))
            config.quantization_config = {
                "quant_method": METHOD,
                "master_bitwidth": MASTER_BITS,
                "inference_bitwidth": FIRST_BITS,
                "group_size": group_size,
                "quant_dtype": str(self.scale_dtype).removeprefix("torch."),
                "modules_to_not_convert": plain,
            }
            model.save_pretrained(folder, state_dict=tensors)
        source.tokenizer.save_pretrained(folder)

    def _tensors(self, name: str, weight: SlicedWeight) -> dict[str, Tensor]:
        return {
            f"{name}.qweight": weight.codes.contiguous(),
            f"{name}.scales": weight.grid.scale.to(self.scale_dtype).contiguous(),
        }


def group_sizes(source: Source) -> dict[str, int]:
    """The inputs that share a scale in each layer; one group a row is a group too."""
    return {name: shape.group_size or shape.shape[1] for name, shape in source.shapes.items()}


def unquantized(model: nn.Module, quantized: set[str]) -> list[str]:
    """The ends of paths by which the plugin knows the linear layers that are not quantized, fused ones too."""
    plain = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path not in quantized]
    found = dict.fromkeys(["lm_head", "norm"])
    for path in plain:
        end = ".".join(path.split(".")[-2:])
        found[path if any(other.endswith(end) for other in quantized) else end] = None
    for path in list(found):
        stem, _, last = path.rpartition(".")
        for (first, *_), fused in zip(FUSED, ("qkv_proj", "gate_up_proj"), strict=True):
            if last == first:
                found[f"{stem}.{fused}" if stem else fused] = None
    return list(found)
