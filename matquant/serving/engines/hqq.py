"""A read-out in HQQ's layout, which its library opens as a model of transformers.

The library reads `config.json` and `qmodel.pt`: the state of every module that has no others inside, by path.  A
quantized one has

    W_q          codes, one group of a row beside the other as rows of a matrix, several rows in one number
    scale, zero  one for each group, both real: weights are (codes - zero) * scale
    shape, group_size, nbits, packing ...

and is opened by `AutoHQQHFModel.from_quantized(DIR, compute_dtype=torch.float32, device="cpu")`.  Scales and zeros are
kept in float32, and rounded to the dtype that is asked for there.  The class for HQQ in transformers 5 opens no folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor, nn

from matquant.codes.sliced import SlicedWeight
from matquant.models.layers.experts import together
from matquant.models.layers.linear_layers import as_stored
from matquant.serving.engines.formats import (
    Source,
    refuse_layers,
    refuse_transformed,
    require_causal,
    require_plain_layers,
)

WEIGHTS = "qmodel.pt"
PACKINGS = {1: ("1bit_u8", 8), 2: ("2bit_u8", 4), 3: ("3bit_32", 10), 4: ("4bit_u8", 2)}
"""The packing of each width, and the number of codes in one of its numbers; other widths take 8 bits a code."""
UNPACKED = ("8bit_u8", 1)
WIDTHS = (1, 2, 3, 4, 5, 6, 8)
"""The widths that HQQ names."""


@dataclass(frozen=True)
class HQQ:
    """Packed codes beside real scales and zeros."""

    name: str = "hqq"
    scale_dtype: torch.dtype | None = None

    def refuse(self, source: Source) -> None:
        refuse_transformed(self.name, source.shapes)
        require_plain_layers(self.name, source)
        require_causal(self.name, source)
        modules = dict(source.model.named_modules())
        refuse_layers(
            self.name,
            "its library replaces layers of torch's class Linear, and these have a class of their own",
            (name for name in source.shapes if type(modules[name]) is not nn.Linear),
            "export dense or nested",
        )
        with _as_saved(source):
            refuse_layers(
                self.name,
                "its library reads the weights of modules without others inside, and these stand beside some",
                (
                    f"{path}.{name}"
                    for path, module in source.model.named_modules()
                    if module._modules
                    for name in _own_state(module)
                ),
                "export dense or nested",
            )

    def notes(self, source: Source) -> Iterator[str]:
        """The widths that are kept in more bits than they have."""
        widths = sorted({shape.part.bits + shape.part.extra_precision for shape in source.shapes.values()})
        for bits in widths:
            if bits not in PACKINGS and bits < 8:
                yield f"hqq keeps {bits} bits in 8, so that they take the memory of int8"

    def hold(self, name: str, weight: SlicedWeight) -> SlicedWeight:
        return weight

    def write(self, folder: Path, source: Source, held: Callable[[str], SlicedWeight]) -> None:
        with _as_saved(source):
            state = {}
            for path, module in source.model.named_modules():
                if path in source.shapes:
                    bias = module._parameters.get("bias")
                    state[path] = layer_state(held(path), None if bias is None else bias.detach())
                elif not module._modules and (own := _own_state(module)):
                    state[path] = own
        # Into a file of Python's: torch's own says of a full disk nothing that tells it from a defect.
        with (folder / WEIGHTS).open("wb") as file:
            torch.save(state, file)
        config = deepcopy(source.model.config)
        config.architectures, config.dtype = [type(source.model).__name__], source.model.dtype
        config.save_pretrained(folder)
        if source.model.generation_config is not None:
            source.model.generation_config.save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)


@contextmanager
def _as_saved(source: Source) -> Iterator[None]:
    """The model as transformers builds it from its configuration, for as long as the context lasts."""
    with as_stored(source.model), together(source.model):
        yield


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a module saves itself, without those of modules inside."""
    state: dict[str, Tensor] = {}
    module._save_to_state_dict(state, "", keep_vars=False)
    return state


def layer_state(weight: SlicedWeight, bias: Tensor | None) -> dict[str, Any]:
    """The state of one quantized layer."""
    rows, columns = weight.codes.shape
    groups = weight.grid.scale.shape[1]
    codes = weight.codes.reshape(rows * groups, -1)
    packing, together = PACKINGS.get(weight.num_bits, UNPACKED)
    if weight.num_bits != 3 and len(codes) % together:
        # Only of three bits the library cuts off the rows that fill up the last number.
        packing, together = UNPACKED
    packed = packed_rows(codes, weight.num_bits, together)
    state: dict[str, Any] = {
        "W_q": packed,
        "scale": weight.grid.scale.reshape(-1, 1).clone(),
        "zero": weight.grid.zero.reshape(-1, 1).clone(),
        "shape": torch.Size((rows, columns)),
        "group_size": columns // groups,
        "nbits": next(bits for bits in WIDTHS if bits >= weight.num_bits),
        "axis": 1,
        "packing": packing,
        "unpack_view_dtype": packed.dtype,
        "view_as_float": False,
        "quant_scale": False,
        "quant_zero": False,
        "channel_wise": True,
        "optimize": False,
        "round_zero": False,
        "offload_meta": False,
        "stores_quant_config": True,
    }
    return state if bias is None else {**state, "bias": bias}


def packed_rows(codes: UInt8[Tensor, "rows group"], bits: int, together: int) -> Shaped[Tensor, "packed group"]:
    """Several rows of codes in each row of numbers: the first of all in the highest bits, the last in the lowest."""
    if together == 1:
        return codes
    wide = codes.to(torch.int32 if bits * together > 8 else torch.uint8)
    parts = nn.functional.pad(wide, (0, 0, 0, -len(wide) % together)).unflatten(0, (together, -1))
    packed = torch.zeros_like(parts[0])
    for part in parts:
        packed = packed << bits | part
    return packed
