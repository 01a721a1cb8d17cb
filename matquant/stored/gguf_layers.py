"""The tensors of a GGUF file: their kinds, widths and bytes, and the words of its own metadata."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from matquant.errors import UserError
from matquant.stored.foreign_layers import Layers, StoredLayer

REAL = ("F64", "F32", "F16", "BF16")
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
WIDTH = re.compile(r"[A-Z]+(\d)")
"""The width in the name of a kind: Q4_K, IQ2_XS, TQ1_0, MXFP4."""


def gguf_contents(path: Path) -> tuple[str, str, str, Layers]:
    """Tool, grid, unquantized matrices and quantized ones of a file; UserError where it is not read here."""
    if SPLIT.search(path.name):
        raise UserError(
            f"{path} is a part of a model; join its parts first: `llama-gguf-split --merge {path} NEW.gguf`"
        )
    reader = _opened(path)
    layers: Layers = {}
    kinds, left = Counter[str](), set[str]()
    for tensor in reader.tensors:
        kind, shape = tensor.tensor_type.name, tuple(int(length) for length in reversed(tensor.shape))
        name = tensor.name.removesuffix(".weight")
        if kind in REAL:
            if len(shape) > 1:
                left.add(name.rpartition(".")[2])
            continue
        size = int(tensor.n_elements)
        # Experts are one tensor of three dimensions.
        layers[name] = StoredLayer((size // shape[-1], shape[-1]), {_width(kind): 8 * int(tensor.n_bytes)})
        kinds[kind] += size
    if not layers:
        raise UserError(f"{path} holds no quantized tensor; measure its model with base=none, out of a folder")
    return _tool(reader), ", ".join(kind for kind, _ in kinds.most_common()), ", ".join(sorted(left)), layers


def _opened(path: Path) -> Any:
    try:
        from gguf import GGUFReader  # a part of a second, for one format of several
    except ImportError as error:
        raise UserError(f"{path} is read with the package gguf, which is not installed; pip install gguf") from error
    try:
        return GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{path} is cut short, damaged, or no GGUF file ({error}); copy or download it again"
        ) from error


def _width(kind: str) -> int:
    match = WIDTH.match(kind)
    if match is None:
        raise UserError(f"a tensor is of the kind {kind}, which has no width; convert the file to another kind")
    return int(match[1])


def _tool(reader: Any) -> str:
    """`by unsloth`: whoever the file names; the program that quantized it is not in the format."""
    field = reader.get_field("general.quantized_by")
    return "" if field is None else f"by {field.contents()}"
