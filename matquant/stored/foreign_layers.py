"""The quantized layers of foreign files, each with its shape, its widths and the bits that it takes in the file.

A layer is known by its tensors, and a width by their shapes: what a configuration says of all layers need not be true
of each (GPTQModel's `dynamic`, compressed-tensors' groups).

    gptq               qweight int32 [in * r / 32, out], qzeros [groups, out * r / 32], scales [groups, out], g_idx
    awq                qweight int32 [in, out * r / 32], qzeros [groups, out * r / 32], scales [groups, out]
    compressed-tensors weight_packed or weight, weight_scale, weight_zero_point, weight_shape
    hqq                W_q, scale, zero, nbits, shape, axis, packing
    bitsandbytes       weight, weight.absmax, weight.quant_map, weight.quant_state...; or int8 weight and SCB
    matgptq            qweight uint8 [out, in], scales [out, groups]
    matquant           the planes and grids of a nested folder
    any-precision      qweight int32 [planes, out, in / 32], lut<r> [out, 2^r]
    anybcq             qweight int32 [in / 32, planes, out], alpha_<r> [groups, r, out], beta_<r> [groups, out]
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from matquant.errors import UserError
from matquant.stored.foreign_files import ForeignFiles
from matquant.stored.headers import Entries, Entry


class StoredLayer(NamedTuple):
    """One quantized layer."""

    shape: tuple[int, int]
    bits: Mapping[int, int]
    """For each of its widths, the bits of the file that are read for it: codes, scales, zeros, tables."""

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def width(self) -> int:
        """The widest."""
        return max(self.bits)


Layers = dict[str, StoredLayer]
Parts = Mapping[str, Entry]
"""The tensors of one layer by the end of their names."""
QUANT_STATE = "weight.quant_state.bitsandbytes__"
WIDEST = 8
UNUSED = ("k_scale", "v_scale", "k_zero_point", "v_zero_point", "q_scale")
"""Scales of the cache of keys and values, which is not quantized here."""
NAMED = 3
"""The most tensors that a sentence names."""


def layers_of(format: str, tensors: Entries, files: ForeignFiles) -> Layers:
    """The quantized layers of a file of one format; UserError if it has none, or some that are not as documented."""
    mark, read = READERS[format]
    found: Layers = {}
    for name, parts in _parts(tensors, _marked(tensors, mark)).items():
        _require_all_read(format, name, parts, files)
        try:
            found[name] = read(name, parts, files)
        except (KeyError, ValueError, IndexError, ZeroDivisionError, TypeError) as error:
            raise UserError(
                f"{name} of {files.title} is not stored as {format} is documented to be "
                f"({type(error).__name__}: {error}); copy or download it again, or quantize it again"
            ) from error
    if not found:
        raise UserError(
            f"{files.title} says {format} in its configuration, and none of its tensors is quantized so; copy or "
            "download it again"
        )
    return found


def _require_all_read(format: str, name: str, parts: Iterable[str], files: ForeignFiles) -> None:
    """Refuses a tensor of a layer that its reader would leave aside, such as a rotation or an order of inputs."""
    known = re.compile(PARTS[format])
    unread = sorted(part for part in parts if not known.fullmatch(part) and part not in UNUSED)
    if unread:
        more = f" and {len(unread) - NAMED} more" if len(unread) > NAMED else ""
        raise UserError(
            f"{name} of {files.title} has {', '.join(unread[:NAMED])}{more}, which the reader of {format} does not "
            "use, so that its weight would be another one; quantize it again without, or measure its unquantized model"
        )


def _marked(tensors: Entries, mark: str) -> set[str]:
    pattern = re.compile(rf"(.+)\.{mark}")
    return {match[1] for name in tensors if (match := pattern.fullmatch(name))}


def layer_of(name: str, layers: Container[str]) -> tuple[str, str] | None:
    """The quantized layer that a tensor is of, and the rest of its name; None for others, as a layer's bias is."""
    stem = name
    while (stem := stem.rpartition(".")[0]) and stem not in layers:
        pass
    part = name[len(stem) + 1 :]
    return (stem, part) if stem and part != "bias" else None


def _parts(tensors: Entries, layers: set[str]) -> dict[str, dict[str, Entry]]:
    """The tensors of each layer."""
    found: dict[str, dict[str, Entry]] = {name: {} for name in sorted(layers)}
    for name, entry in tensors.items():
        if (place := layer_of(name, layers)) is not None:
            found[place[0]][place[1]] = entry
    return found


def _whole(value: float) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"its shapes give a width of {value:g} bits")
    return int(value)


def _all(parts: Parts) -> int:
    return sum(entry.num_bits for entry in parts.values())


def _of_one_width(shape: tuple[int, int], width: int, parts: Parts) -> StoredLayer:
    if not 1 <= width <= WIDEST:
        raise ValueError(f"its shapes give a width of {width} bits")
    return StoredLayer(shape, {width: _all(parts)})


def _require_as_configured(facts: Mapping[str, Any], *, columns: int, groups: int, width: int | None = None) -> None:
    """Refuses a width or a size of groups that is another one in a configuration than in the file.

    GPTQModel's `dynamic` and the like give layers settings of their own, of which the shapes alone tell.
    """
    if facts.get("dynamic") or facts.get("mixed_precision"):
        return
    bits, size = facts.get("bits", facts.get("w_bit")), facts.get("group_size", facts.get("q_group_size"))
    if width is not None and isinstance(bits, int) and bits != width:
        raise ValueError(f"its configuration says {bits} bits, and its shapes {width}")
    if isinstance(size, int) and size != 0 and groups != (-(-columns // size) if size > 0 else 1):
        whole = f"groups of {columns // groups}" if groups > 1 else "one group"
        raise ValueError(f"its configuration says groups of {size}, and its shapes {whole}")


# --- formats of one width --------------------------------------------------------------------------------------------


def _gptq(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    out, words = parts["scales"].shape[1], 32 * parts["qweight"].shape[0]
    zeros = parts["qzeros"].shape[1]
    if "g_idx" in parts:
        columns = parts["g_idx"].size
        width = _whole(words / columns)
    else:
        width = _whole(32 * zeros / out)
        columns = _whole(words / width)
    if zeros != -(-out * width // 32):
        raise ValueError(f"its qweight has {width} bits, and its qzeros {32 * zeros / out:g}")
    _require_as_configured(files.quantization, columns=columns, groups=parts["scales"].shape[0], width=width)
    return _of_one_width((out, columns), width, parts)


def _awq(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    out = parts["scales"].shape[1]
    width, columns = _whole(32 * parts["qweight"].shape[1] / out), parts["qweight"].shape[0]
    _require_as_configured(files.quantization, columns=columns, groups=parts["scales"].shape[0], width=width)
    return _of_one_width((out, columns), width, parts)


def _hqq(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    rows, columns = parts["shape"].integers()
    return _of_one_width((rows, columns), parts["nbits"].integers()[0], parts)


def _bitsandbytes(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    states = [entry for key, entry in parts.items() if key.startswith(QUANT_STATE)]
    if not states:
        rows, columns = parts["weight"].shape
        return _of_one_width((rows, columns), 8, parts)
    rows, columns = json.loads(states[0].content())["shape"]
    return _of_one_width((int(rows), int(columns)), 4, parts)


def _compressed(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    width = int(scheme_of(name, files.quantization)["weights"]["num_bits"])
    codes = parts["weight_packed"] if "weight_packed" in parts else parts["weight"]
    if "weight_shape" in parts:
        rows, columns = parts["weight_shape"].integers()
    elif "weight_packed" in parts:
        rows, columns = codes.shape[0], _whole(codes.num_bits / codes.shape[0] / width)
    else:
        rows, columns = codes.shape
    weights = {key: entry for key, entry in parts.items() if not key.startswith(("input_", "output_"))}
    return _of_one_width((rows, columns), width, weights)


def scheme_of(name: str, quantization: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config group of compressed-tensors that a layer belongs to: by its name, or as one of all linear layers."""
    groups = list(quantization["config_groups"].values())
    for group in groups:
        if any(_is_meant(name, target) for target in group["targets"]):
            return group
    for group in groups:
        if any(not target.startswith("re:") and "." not in target for target in group["targets"]):
            return group
    raise ValueError("no config group of its configuration names it")


def _is_meant(name: str, target: str) -> bool:
    return bool(re.match(target[3:], name)) if target.startswith("re:") else target == name


# --- formats of several widths ---------------------------------------------------------------------------------------


def _matgptq(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    rows, columns = parts["qweight"].shape
    return StoredLayer(
        (rows, columns), {r: r * rows * columns + parts["scales"].num_bits for r in range(1, WIDEST + 1)}
    )


def _any_precision(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    _, rows, words = parts["qweight"].shape
    widths = _numbered(parts, "lut")
    return StoredLayer(
        (rows, 32 * words), {r: 32 * r * rows * words + parts[f"lut{r}"].num_bits for r in widths if r <= WIDEST}
    )


def _any_bcq(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    words, _, rows = parts["qweight"].shape
    scales = {r: parts[f"alpha_{r}"].num_bits + parts[f"beta_{r}"].num_bits for r in _numbered(parts, "alpha_")}
    return StoredLayer((rows, 32 * words), {r: 32 * r * rows * words + bits for r, bits in scales.items()})


def _numbered(parts: Iterable[str], stem: str) -> list[int]:
    found = sorted(int(match[1]) for key in parts if (match := re.fullmatch(rf"{stem}(\d+)", key)))
    if not found:
        raise KeyError(f"{stem}<bits>")
    return found


def _matquant(name: str, parts: Parts, files: ForeignFiles) -> StoredLayer:
    path = files.folder / "nested.json"
    facts = _nested(path, path.stat().st_mtime_ns)[name]
    rows, columns = (int(length) for length in facts["shape"])
    grid = sum(entry.num_bits for key, entry in parts.items() if key.startswith(("scale", "zero", "transform.")))
    return StoredLayer((rows, columns), {r: r * rows * columns + grid for r in range(1, facts["parent_bits"] + 1)})


@lru_cache(maxsize=1)
def _nested(path: Path, _: int) -> Mapping[str, Any]:
    """The layers of a nested folder; its description is read once for all of them."""
    return json.loads(path.read_text(encoding="utf-8"))["layers"]


READERS: Mapping[str, tuple[str, Callable[[str, Parts, ForeignFiles], StoredLayer]]] = {
    "gptq": ("qweight", _gptq),
    "awq": ("qweight", _awq),
    "compressed-tensors": ("(?:weight_packed|weight_scale)", _compressed),
    "hqq": ("W_q", _hqq),
    "bitsandbytes": (rf"(?:{re.escape(QUANT_STATE)}(?:nf4|fp4)|SCB)", _bitsandbytes),
    "matgptq": ("qweight", _matgptq),
    "matquant": ("scale", _matquant),
    "any-precision": ("qweight", _any_precision),
    "anybcq": ("qweight", _any_bcq),
}
"""For each format the tensor that marks a quantized layer, and what reads the layer's facts."""

PARTS: Mapping[str, str] = {
    "gptq": "qweight|qzeros|scales|g_idx",
    "awq": "qweight|qzeros|scales",
    # The scales of activations are left aside, which the column Grid says.
    "compressed-tensors": "weight|weight_(?:packed|scale|zero_point|shape)|(?:input|output)_(?:scale|zero_point)",
    # Behind the first line, what HQQ keeps of its own settings: no weight depends on them.
    "hqq": "W_q|scale|zero|nbits|shape|axis|packing|group_size|view_as_float"
    "|unpack_view_dtype|quant_scale|quant_zero|compute_dtype|offload_meta|encoded_state_dict|stores_quant_config"
    "|channel_wise|optimize|round_zero",
    "bitsandbytes": r"weight(?:\.(?:nested_)?(?:absmax|quant_map))?"
    rf"|{re.escape(QUANT_STATE)}(?:nf4|fp4)|SCB|weight_format",
    "matgptq": "qweight|scales",
    "matquant": r"scale|zero|transform\.\w+",
    "any-precision": r"qweight|lut\d+",
    # Its own program stores q_bias, and multiplies without it.
    "anybcq": r"qweight|alpha_\d+|beta_\d+|q_bias",
}
"""For each format the tensors of a layer that its reader knows, by the end of their names."""
