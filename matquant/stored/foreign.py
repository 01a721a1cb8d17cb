"""A model that somebody else quantized, as its own files describe it: format, tool, widths, groups, and what is left.

Everything that a row of a table says of such a model is read here, out of its configuration and the headers of its
files, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from matquant.errors import UserError
from matquant.stored.foreign_files import ForeignFiles, find_files
from matquant.stored.foreign_layers import READERS, Layers, layers_of, scheme_of
from matquant.stored.gguf_layers import gguf_contents
from matquant.stored.headers import REAL, Entries, entries

METHODS = {"matgptq_quant": "matgptq", **{name: name for name in READERS if name not in ("any-precision", "anybcq")}}
"""The formats by the quant_method of a configuration."""
NESTED = ("matgptq", "matquant", "any-precision", "anybcq")
"""The formats that are read at several widths."""
FORMATS = (*READERS, "gguf")
AWQ_ORDER = "gemm"
"""The one packing of AWQ whose order is read."""
GPTQ_LAYOUTS = ("gptq", "gptq_v2")
COMPRESSED = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision")
"""The layouts of compressed-tensors that are read; others need the scales of activations, or a kernel."""
MERGED = {"weight_input", "weight_output"}
"""The places of a rotation that lies in the stored weights already."""


class Foreign(NamedTuple):
    """The contents of the files of a foreign model."""

    format: str
    tool: str
    """The program that wrote it and its version, as far as its configuration says."""
    grid: str
    """Groups, zeros and codebooks in words."""
    unquantized: str
    """The matrices that are left in 16 bits or more."""
    layers: Layers

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths at which all of it can be read, widest first; none if its layers have widths of their own."""
        common = set[int].intersection(*(set(layer.bits) for layer in self.layers.values()))
        return tuple(sorted(common, reverse=True))

    @property
    def average(self) -> float:
        """The average width of a quantized weight, each layer at its widest."""
        size = sum(layer.size for layer in self.layers.values())
        return sum(layer.size * layer.width for layer in self.layers.values()) / size


def describe(path: Path) -> tuple[ForeignFiles, Foreign]:
    """The files of a model and what is in them; UserError for one that is not read here."""
    files = find_files(path)
    return files, _contents(files.path, tuple(_state(file) for file in files.read))


def _state(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns


@lru_cache(maxsize=64)
def _contents(path: Path, states: tuple[tuple[str, int, int], ...]) -> Foreign:
    """The contents of files as they are now: many cells, and many steps of one command, ask for the same."""
    files = find_files(path)
    if files.gguf is not None:
        return Foreign("gguf", *gguf_contents(files.gguf))
    format = _format(files)
    tensors = entries(files.weights)
    layers = layers_of(format, tensors, files)
    grid = ", ".join(filter(None, _grid(format, files, layers, tensors)))
    return Foreign(format, _tool(format, files.quantization), grid, _unquantized(tensors, layers), layers)


# --- format ----------------------------------------------------------------------------------------------------------


def _format(files: ForeignFiles) -> str:
    for key, format in (("anyprec", "any-precision"), ("anybcq", "anybcq")):
        if key in files.config:
            return format
    facts = files.quantization
    if not facts:
        raise UserError(
            f"{files.title} is not quantized: its config.json has no quantization_config; measure it with base=none"
        )
    method = str(facts.get("quant_method", "")).lower()
    format = METHODS.get(method)
    if format is None:
        raise UserError(
            f"{files.title} is quantized by quant_method={method or '?'}, which is not read here; give a model in one "
            f"of {', '.join(FORMATS)}"
        )
    _require_known_layout(format, facts, files)
    return format


def _require_known_layout(format: str, facts: Mapping[str, Any], files: ForeignFiles) -> None:
    """Refuses layouts of a format whose order of codes is another one."""
    match format:
        case "gptq":
            layout, known = str(facts.get("checkpoint_format") or "gptq"), GPTQ_LAYOUTS
        case "awq":
            layout, known = str(facts.get("version") or facts.get("format") or AWQ_ORDER).lower(), (AWQ_ORDER,)
        case "compressed-tensors":
            _require_no_rotation(facts, files)
            layout, known = str(facts.get("format")), COMPRESSED
        case _:
            return
    if layout not in known:
        raise UserError(
            f"{files.title} is in the {layout} layout of {format}, which is not read here; "
            f"convert it to {' or '.join(known)}, or measure its unquantized model"
        )


def _require_no_rotation(facts: Mapping[str, Any], files: ForeignFiles) -> None:
    """Refuses weights that are right only behind a rotation of activations, as SpinQuant's R4 and QuIP's are."""
    groups = (facts.get("transform_config") or {}).get("config_groups") or {}
    places = {name: {str(one.get("location")) for one in group.get("apply", ())} for name, group in groups.items()}
    online = {name: sorted(found - MERGED) for name, found in places.items() if found - MERGED}
    if online:
        name, found = next(iter(online.items()))
        raise UserError(
            f"{files.title} is rotated while it runs ({name} of its transform_config, at {', '.join(found)}), which is "
            "not read here; quantize it again with rotations that are merged into its weights, or measure its "
            "unquantized model"
        )


def _tool(format: str, facts: Mapping[str, Any]) -> str:
    """`gptqmodel 2.2.0`: as the configuration says it, else empty."""
    meta = facts.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    named = [quantizer] if isinstance(quantizer, str) else quantizer if isinstance(quantizer, list) else []
    if named:
        return ", ".join(str(one).replace(":", " ") for one in named)
    if format == "compressed-tensors" and facts.get("version"):
        return f"compressed-tensors {facts['version']}"
    return ""


# --- words -----------------------------------------------------------------------------------------------------------


def _grid(format: str, files: ForeignFiles, layers: Layers, tensors: Entries) -> Iterator[str]:
    facts = files.quantization
    match format:
        case "gptq":
            yield _groups(facts.get("group_size"))
            yield "symmetric" if facts.get("sym") else "zeros that are codes"
            yield "in the order of activations" if facts.get("desc_act") else ""
        case "awq":
            yield _groups(facts.get("group_size", facts.get("q_group_size")))
            yield "zeros that are codes" if facts.get("zero_point", True) else "symmetric"
        case "compressed-tensors":
            yield from dict.fromkeys(word for name in layers for word in _of_scheme(scheme_of(name, facts)))
        case "hqq":
            sizes = {tensors[f"{name}.group_size"].integers()[0] for name in layers if f"{name}.group_size" in tensors}
            yield from (_groups(size) for size in sorted(sizes))
            yield "real zero"
        case "bitsandbytes":
            yield from _of_bitsandbytes(facts)
        case "matgptq":
            yield _groups(facts.get("group_size"))
            yield "symmetric"
        case "matquant":
            yield ""
        case "any-precision":
            yield "a table of values for each row"
        case "anybcq":
            yield _groups(files.config["anybcq"].get("group_size"))
            yield "a scale for each bit"
        case _:
            raise AssertionError(format)


def _groups(size: object) -> str:
    if size is None:
        return ""
    return "per channel" if size == -1 else f"groups of {size}"


def _of_scheme(scheme: Mapping[str, Any]) -> Iterator[str]:
    weights, activations = scheme["weights"], scheme.get("input_activations")
    yield (
        f"groups of {weights['group_size']}"
        if weights.get("strategy") == "group"
        else (f"per {weights.get('strategy', 'tensor')}")
    )
    yield "symmetric" if weights.get("symmetric", True) else "zeros that are codes"
    if weights.get("type") == "float":
        yield "floating-point codes"
    if activations:
        yield f"activations of {activations.get('num_bits')} bits left as they are"


def _of_bitsandbytes(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts.get("load_in_8bit"):
        yield "per channel"
        yield "symmetric"
        yield "activations left as they are"
        return
    yield str(facts.get("bnb_4bit_quant_type", ""))
    yield "scales in 8 bits" if facts.get("bnb_4bit_use_double_quant") else ""


def _unquantized(tensors: Entries, layers: Layers) -> str:
    """`embed_tokens, lm_head`: the matrices that no quantized layer has, by the last parts of their names."""
    left = {
        name.removesuffix(".weight").rpartition(".")[2]
        for name, entry in tensors.items()
        if name.endswith(".weight") and len(entry.shape) > 1 and entry.dtype in REAL
        if name.removesuffix(".weight") not in layers
    }
    return ", ".join(sorted(left))
