"""The tensors of a GGUF file: their kinds, widths and bytes, and the words of its own metadata."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from matquant.errors import UserError
from matquant.stored.foreign_layers import Layers, StoredLayer

REAL = ("F64", "F32", "F16", "BF16")
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
WIDTH = re.compile(r"[A-Z]+(\d)")
"""The width in the name of a kind: Q4_K, IQ2_XS, TQ1_0, MXFP4."""
ROPE_FACTORS = "rope_freqs.weight"
"""The factors by which frequencies of rotary embeddings are divided: Llama 3.1's way to longer texts."""


class GgufHeader(NamedTuple):
    """The words of a file about its model."""

    architecture: str
    settings: Mapping[str, Any]
    """Of the architecture, by their names without it."""
    tensors: tuple[str, ...]
    rope_factors: tuple[float, ...] | None


def gguf_header(path: Path) -> GgufHeader:
    """The settings and the names of tensors of a file as it is now."""
    return _header(path, _state(path))


def gguf_vocabulary(path: Path) -> frozenset[str]:
    """The tokens of a file as it is now; none if it has no tokenizer."""
    return _vocabulary(path, _state(path))


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=8)
def _header(path: Path, state: tuple[int, int]) -> GgufHeader:
    reader = _opened(path)
    name = reader.get_field("general.architecture")
    if name is None:
        raise UserError(f"{path} does not name its architecture; copy or download it again")
    architecture = name.contents()
    start = f"{architecture}."
    settings = {
        key.removeprefix(start): field.contents() for key, field in reader.fields.items() if key.startswith(start)
    }
    factors = next((tensor.data for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    return GgufHeader(
        architecture,
        settings,
        tuple(tensor.name for tensor in reader.tensors),
        None if factors is None else tuple(float(factor) for factor in factors.flatten()),
    )


@lru_cache(maxsize=2)
def _vocabulary(path: Path, state: tuple[int, int]) -> frozenset[str]:
    field = _opened(path).get_field("tokenizer.ggml.tokens")
    return frozenset() if field is None else frozenset(field.contents())


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
