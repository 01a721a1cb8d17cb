"""Writes a nested folder: the layout is told in `matquant.serving.nested.folder`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from matquant.codes.nested import NestedWeight
from matquant.codes.planes import plane_of
from matquant.codes.quantizers import DTYPES
from matquant.runs.files import write_json
from matquant.serving.engines.model_folder import write_model
from matquant.serving.nested.folder import DESCRIPTION, FORMAT, FORMAT_VERSION, GRIDS, STAMP, plane_file
from matquant.serving.nested.unquantized import saved_files, take_own_names


def write_nested(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Mapping[str, NestedWeight],
    *,
    scale_dtype: str,
    facts: Mapping[str, Any],
    plans: Mapping[str, Mapping[str, str]],
    wrote: Callable[[str], object] = lambda file: None,
) -> None:
    """Fills an empty folder.

    `facts` are kept as they are: cell, sources, checksum, versions.  `plans` are those that were searched for, by name,
    with the slice of every layer.  `wrote` is called after every file.
    """
    write_model(folder, model, layers, quantization_config={"quant_method": "matquant", "plan": None, "packed": False})
    stamp = _stamp(layers, saved_files(folder))
    rest = take_own_names(folder, stamp)
    tokenizer.save_pretrained(folder)
    wrote("the weights that are not quantized")
    save_file(_grids(layers, scale_dtype), folder / GRIDS, metadata={STAMP: stamp})
    wrote(GRIDS)
    depth = max(nested.parent_bits for nested in layers.values())
    for number in range(1, depth + 1):
        # One file in memory at a time: a plane of a 9B model is one gigabyte.
        planes = {
            name: plane_of(nested.codes, number, nested.parent_bits).cpu()
            for name, nested in layers.items()
            if nested.parent_bits >= number
        }
        save_file(planes, folder / plane_file(number), metadata={STAMP: stamp})
        wrote(plane_file(number))
    files = [*rest, GRIDS, *(plane_file(number) for number in range(1, depth + 1))]
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        STAMP: stamp,
        "layers": {name: _layer(nested) for name, nested in layers.items()},
        "scale_dtype": scale_dtype,
        "plans": {name: dict(widths) for name, widths in plans.items()},
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in files},
        **facts,
    }
    write_json(folder / DESCRIPTION, description)


def _layer(nested: NestedWeight) -> dict[str, Any]:
    transform = {} if nested.transform is None else {"transform": list(nested.transform.tensors)}
    return {
        "shape": list(nested.codes.shape),
        "groups": nested.grid.scale.shape[1],
        "parent_bits": nested.parent_bits,
        **transform,
    }


def _grids(layers: Mapping[str, NestedWeight], scale_dtype: str) -> dict[str, Tensor]:
    dtype, tensors = DTYPES[scale_dtype], {}
    for name, nested in layers.items():
        tensors[f"{name}.scale"] = nested.grid.scale.to(dtype).contiguous().cpu()
        tensors[f"{name}.zero"] = nested.grid.zero.to(dtype).contiguous().cpu()
        for kind, tensor in ({} if nested.transform is None else nested.transform.tensors).items():
            tensors[f"{name}.transform.{kind}"] = tensor.cpu().clone()
    return tensors


def _stamp(layers: Mapping[str, NestedWeight], rest: Iterable[Path]) -> str:
    """A name for this very model: another for other codes, grids, transformations or unquantized weights."""
    digest = hashlib.sha256()
    for path in rest:
        digest.update(_sha256(path).encode())
    for name, nested in layers.items():
        transform = {} if nested.transform is None else nested.transform.tensors
        for tensor in (nested.codes, *nested.grid, *transform.values()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {nested.parent_bits}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
