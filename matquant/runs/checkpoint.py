"""The nested checkpoint on disk: one set of parent codes from which every slice is read.

checkpoint/nested.safetensors   <layer>.codes uint8, <layer>.scale and <layer>.zero in the grid's stated dtype
checkpoint/nested.json          format version, cell, its sources, layers, library versions, checksum of the tensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from matquant.codes.nested import NestedWeight, Transform
from matquant.codes.quantizers import DTYPES, Grid
from matquant.config.cell import Cell
from matquant.errors import NotFiniteError, UserError
from matquant.runs.files import write_beside, write_json
from matquant.runs.provenance import library_versions, source_commit

FORMAT_VERSION = 1


@dataclass(frozen=True)
class NestedCheckpoint:
    """The quantized layers of one cell, by their path in the model; `checksum` identifies these very bits."""

    layers: Mapping[str, NestedWeight]
    checksum: str


def save_layers(path: Path, layers: Mapping[str, NestedWeight], *, scale_dtype: str) -> None:
    """Writes nested weights as safetensors, atomically; NotFiniteError names a scale or zero that is not.

    A file that holds one would be read for ever: it counts as done.
    """
    tensors = {}
    for name, nested in layers.items():
        tensors[f"{name}.codes"] = nested.codes.contiguous().cpu()
        tensors[f"{name}.scale"] = nested.grid.scale.to(DTYPES[scale_dtype]).contiguous().cpu()
        tensors[f"{name}.zero"] = nested.grid.zero.to(DTYPES[scale_dtype]).contiguous().cpu()
        if nested.transform is not None:
            for part, tensor in nested.transform.tensors.items():
                # A copy: layers with the same input share theirs, which safetensors refuses.
                tensors[f"{name}.transform.{part}"] = tensor.cpu().clone()
    if bad := _not_finite(tensors):
        narrow = "set grid.scale_dtype=float32, or " if scale_dtype != "float32" else ""
        raise NotFiniteError(
            f"{bad} of {path.stem} is not finite; {narrow}lower the learning rates "
            "(base.lr, base.clipping_lr, base.transformation_lr)"
        )
    # One entry only: safetensors writes several in no fixed order, and equal weights should be equal files.
    parents = {"parent_bits": json.dumps({name: nested.parent_bits for name, nested in layers.items()})}
    write_beside(path, lambda beside: save_file(tensors, beside, parents))


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a number that is NaN or infinite, if there is one."""
    numbers = ((name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point())
    return next((name for name, tensor in numbers if not tensor.isfinite().all()), None)


def load_layers(path: Path, *, device: str = "cpu") -> dict[str, NestedWeight]:
    """Reads what `save_layers` wrote; scales and zeros come back in float32 with their stored values.

    NotFiniteError for a number that is not: older versions wrote them.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        parents = json.loads(file.metadata()["parent_bits"])
    tensors = load_file(path, device=device)
    if bad := _not_finite(tensors):
        raise NotFiniteError(f"{bad} in {path} is not finite; delete {path.parent} and run the cell again")
    return {
        name: NestedWeight(
            tensors[f"{name}.codes"],
            Grid(tensors[f"{name}.scale"].float(), tensors[f"{name}.zero"].float()),
            parents[name],
            _transform(tensors, name),
        )
        for name in parents
    }


def _transform(tensors: Mapping[str, Tensor], name: str) -> Transform | None:
    stem = f"{name}.transform"
    if f"{stem}.scale" not in tensors:
        return None
    return Transform(tensors[f"{stem}.scale"], tensors.get(f"{stem}.shift"), tensors.get(f"{stem}.bias"))


def save_checkpoint(
    folder: Path, cell: Cell, layers: Mapping[str, NestedWeight], sources: Mapping[str, str] = {}
) -> NestedCheckpoint:
    """Writes a finished checkpoint; the json goes last, so its presence means that the checkpoint is whole."""
    assert cell.grid is not None
    path = folder / "nested.safetensors"
    save_layers(path, layers, scale_dtype=cell.grid.scale_dtype)
    checksum = _checksum(path)
    facts = {
        "format_version": FORMAT_VERSION,
        "cell_id": cell.id,
        "cell": cell.model_dump(mode="json"),
        "sources": dict(sources),
        "layers": {
            name: {
                "shape": list(nested.codes.shape),
                "groups": nested.grid.scale.shape[1],
                "parent_bits": nested.parent_bits,
            }
            for name, nested in layers.items()
        },
        "scale_dtype": cell.grid.scale_dtype,
        "checksum": checksum,
        **source_commit(),
        "versions": library_versions(),
    }
    write_json(folder / "nested.json", facts)
    return NestedCheckpoint(dict(layers), checksum)


def has_checkpoint(folder: Path) -> bool:
    return (folder / "nested.json").exists()


def load_checkpoint(folder: Path, cell: Cell, *, device: str = "cpu") -> NestedCheckpoint:
    """Reads the checkpoint of a cell; UserError if it is damaged, of another format, or of another cell."""
    facts = _facts(folder)
    remedy = f"delete {folder} and run the cell again"
    if facts.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {facts.get('format_version')}, this program reads {FORMAT_VERSION}; {remedy}"
        )
    if facts.get("cell_id") != cell.id:
        raise UserError(f"{folder} holds cell {facts.get('cell_id')}, not {cell.id}; {remedy}")
    path = folder / "nested.safetensors"
    try:
        if _checksum(path) != facts.get("checksum"):
            raise UserError(f"{path} is damaged: its checksum is not the recorded one; {remedy}")
        return NestedCheckpoint(load_layers(path, device=device), facts["checksum"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "nested.json"
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a checkpoint description ({error}); delete {folder} and run the cell again"
        ) from error
    return facts if isinstance(facts, dict) else {}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
