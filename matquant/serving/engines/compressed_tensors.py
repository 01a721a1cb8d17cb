"""A read-out in compressed-tensors' `pack-quantized` layout, which vLLM and transformers read.

Of a layer of r bits a weight the layout keeps

    weight_packed      the codes of each row, r bits each and none between them, in 32-bit words, lowest bits first
    weight_scale       float32, one for each group of a row
    weight_zero_point  the zeros as codes, packed in the same way along outputs; none on a symmetric grid
    weight_shape       outputs and inputs

Codes are read as signed, k - 2^(r-1), and zeros likewise, so that codes without a sign are stored as they are.  A zero
has to be a code.  Words without padding are what compressed-tensors 0.18 and later and vLLM's own loader read; 0.17
leaves bits empty at 3, 5, 6 and 7 bits and cannot read those widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel

from matquant.codes.sliced import SlicedWeight
from matquant.serving.engines.formats import (
    LayerShape,
    Source,
    refuse_transformed,
    require_fused_alike,
    require_plain_layers,
    rounded_zeros,
)
from matquant.serving.engines.model_folder import write_model

READ_SINCE = "0.18.0"
"""The first version of compressed-tensors that reads words without padding."""


class Scheme(NamedTuple):
    """The settings that layers of one config group share."""

    num_bits: int
    group_size: int | None

    def config(self, targets: list[str], *, is_symmetric: bool) -> dict[str, Any]:
        weights = {
            "num_bits": self.num_bits,
            "type": "int",
            "symmetric": is_symmetric,
            "strategy": "channel" if self.group_size is None else "group",
            "group_size": self.group_size,
            "dynamic": False,
        }
        return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


@dataclass(frozen=True)
class CompressedTensors:
    """Packed codes with zeros that are codes."""

    name: str = "compressed-tensors"
    scale_dtype: torch.dtype | None = None

    def refuse(self, source: Source) -> None:
        refuse_transformed(self.name, source.shapes)
        require_plain_layers(self.name, source)
        require_fused_alike(source.shapes, self.name, not_quantized(source.model, source.shapes))

    def notes(self, source: Source) -> Iterator[str]:
        """The folders that vLLM reads and transformers does not."""
        if len(set(_scheme_of(source.shapes).values())) == 1:
            return
        if _is_symmetric(source.shapes):
            yield (
                "transformers reads the widths of this folder, but not with dequantize=True, which takes all layers "
                "for those of the first config group"
            )
        else:
            yield (
                "transformers reads no folder of several widths with zeros; vLLM does, and so does "
                "compressed_tensors.entrypoints.convert"
            )

    def hold(self, name: str, weight: SlicedWeight) -> SlicedWeight:
        return rounded_zeros(weight, top=(1 << weight.num_bits) - 1)

    def write(self, folder: Path, source: Source, held: Callable[[str], SlicedWeight]) -> None:
        is_symmetric = _is_symmetric(source.shapes)
        tensors = {
            f"{name}.{kind}": tensor
            for name in source.shapes
            for kind, tensor in layer_tensors(held(name), is_symmetric=is_symmetric).items()
        }
        write_model(
            folder,
            source.model,
            source.shapes,
            quantization_config=quantization_config(source),
            tensors=tensors,
        )
        source.tokenizer.save_pretrained(folder)


def _is_symmetric(shapes: Mapping[str, LayerShape]) -> bool:
    """True if all layers are: engines fuse some, and a layer may have its zeros in the middle by chance."""
    return all(shape.is_symmetric for shape in shapes.values())


def _scheme_of(shapes: Mapping[str, LayerShape]) -> dict[str, Scheme]:
    """The scheme of every layer."""
    sizes = {shape.group_size for shape in shapes.values()}
    schemes = {}
    for name, shape in shapes.items():
        columns = shape.shape[1]
        # One group a row is no case of its own in a layer that is as narrow as the groups of others.
        size = columns if shape.group_size is None and columns in sizes else shape.group_size
        schemes[name] = Scheme(shape.part.bits + shape.part.extra_precision, size)
    return schemes


def layer_tensors(weight: SlicedWeight, *, is_symmetric: bool) -> dict[str, Tensor]:
    """The tensors of one layer."""
    codes, bits = weight.codes, weight.num_bits
    zeros = weight.grid.zero.to(torch.uint8)
    if is_symmetric:
        # The zero has to be the middle of the stored codes: with extra precision they have one bit more than the slice.
        codes = codes + ((1 << (bits - 1)) - zeros[0, 0])
    tensors = {
        "weight_packed": packed_words(codes, bits),
        "weight_scale": weight.grid.scale.contiguous(),
        "weight_shape": torch.tensor(codes.shape),
    }
    if not is_symmetric:
        tensors["weight_zero_point"] = packed_words(zeros.T, bits).T.contiguous()
    return tensors


def packed_words(codes: UInt8[Tensor, "rows columns"], bits: int) -> Int32[Tensor, "rows words"]:
    """The codes of each row side by side in 32-bit words, lowest bits first; the last word is filled up with zeros."""
    places = torch.arange(bits, dtype=torch.uint8, device=codes.device)
    stream = (codes.unsqueeze(-1) >> places).bitwise_and_(1).flatten(1)
    stream = nn.functional.pad(stream, (0, -stream.shape[1] % 32)).unflatten(1, (-1, 8))
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    # Bytes lie in a word as this machine has them, and as the files have them: the lowest first.
    return (stream << places).sum(-1, dtype=torch.uint8).view(torch.int32)


def quantization_config(source: Source) -> dict[str, Any]:
    """The entry of `config.json`: a config group for each width, and the layers that are not quantized."""
    scheme_of, is_symmetric = _scheme_of(source.shapes), _is_symmetric(source.shapes)
    # Widest first: told to expand weights while it loads, transformers takes all layers for those of the first group.
    # With fewer words than that group needs it fails, where with more it would read other weights without a word.
    ordered = sorted(set(scheme_of.values()), key=lambda scheme: (-scheme.num_bits, scheme.group_size or 0))
    groups = {}
    for number, scheme in enumerate(ordered):
        targets = [name for name in source.shapes if scheme_of[name] == scheme] if len(ordered) > 1 else ["Linear"]
        groups[f"group_{number}"] = scheme.config(targets, is_symmetric=is_symmetric)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "version": READ_SINCE,
        "config_groups": groups,
        "ignore": not_quantized(source.model, source.shapes),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        # transformers keeps no packed zeros in memory, and some architectures read the weight of a layer themselves: so
        # it is told here to expand weights while it loads.
        "dequantize": len(ordered) == 1,
    }


def not_quantized(model: PreTrainedModel, layers: Mapping[str, LayerShape]) -> list[str]:
    """The linear layers of a model that stay as they are."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in layers]
