"""MatGPTQ's checkpoints (arXiv:2602.03537) as nested weights: the layouts in which its programs leave them.

raw       <layer>/data.pt = {qweight: uint8 [out, in], scale and zero: [out, groups], perm: [in] or None}
packed    an ordinary Hugging Face folder with <layer>.qweight, uint8 [out, in], and <layer>.scales, [out, groups], in
          the place of <layer>.weight; its config.json has quant_method matgptq_quant.  The zero is always 128.

Codes are sliced as in Eq. 6 of MatQuant: shifted, rounded by the bit below, clamped.  Their weights are
scale * (S - zero), so that codes and grid are taken as they are.  A raw file is a pickle and is read as data alone:
no code in it is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import DTYPES, Grid
from matquant.errors import UserError
from matquant.models.checks import first_sentence
from matquant.models.weight_files import BAD_FILE, weight_files

METHOD = "matgptq_quant"
RAW_FILE = "data.pt"
MASTER_BITS = 8
MIDDLE = 128.0
"""The zero of a packed checkpoint, which no file says: a kernel subtracts 2^(r-1) from r-bit codes."""
AGAIN = "copy or download it again, or quantize again"


class Theirs(NamedTuple):
    """A checkpoint of MatGPTQ that has been read."""

    layers: Mapping[str, NestedWeight]
    scale_dtype: str
    """The dtype that holds every scale and zero as it was stored."""


def is_packed(folder: Path) -> bool:
    """True for a packed checkpoint, False for a raw one; UserError for anything else."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; give one that MatGPTQ wrote, or download a packed one first: "
            f"`hf download {folder} --local-dir FOLDER`"
        )
    if (folder / "config.json").is_file():
        method = quantization_of(folder).get("quant_method")
        if method != METHOD:
            found = f"quant_method {method}" if method else "no quantization"
            raise UserError(
                f"{folder}/config.json says {found}, and that of MatGPTQ is {METHOD}; give one of its folders"
            )
        return True
    if any(folder.glob(f"*/{RAW_FILE}")):
        return False
    if deeper := sorted(folder.glob(f"*/*/{RAW_FILE}")):
        raise UserError(f"{folder} is the folder above MatGPTQ's layers; give {deeper[0].parent.parent}")
    if any(folder.glob("*/[1-8].pt")):
        raise UserError(
            f"{folder} holds weights of MatGPTQ's plain GPTQ, expanded at one width; quantize with --method matgptq"
        )
    raise UserError(
        f"{folder} holds neither <layer>/{RAW_FILE} nor a config.json with quant_method {METHOD}; give a folder that "
        "MatGPTQ's quant.py or pack_quantized_model.py wrote"
    )


def quantization_of(folder: Path) -> dict[str, Any]:
    """The entry of config.json on quantization; empty if there is none."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("quantization_config") or {}
        return dict(found)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({first_sentence(error)}); copy or download it again") from error


# --- raw -------------------------------------------------------------------------------------------------------------


def read_raw(folder: Path) -> Theirs:
    """The layers of a raw checkpoint; UserError for a file that is damaged, or not MatGPTQ's."""
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    layers, dtypes = {}, set[torch.dtype]()
    for place in places:
        if not (place / RAW_FILE).is_file():
            raise UserError(f"{place} holds no {RAW_FILE}; {AGAIN}, or remove that folder to leave the layer as it is")
        data = _data(place / RAW_FILE)
        dtypes |= {data["scale"].dtype, data["zero"].dtype}
        layers[place.name] = _raw_layer(place.name, data)
    if (highest := max(int(layer.codes.max()) for layer in layers.values())) < MIDDLE:
        bits = max(1, highest.bit_length())
        raise UserError(
            f"{folder} has no code above {highest}, so that its master has {bits} bits, and MatGPTQ's slices are those "
            f"of {MASTER_BITS}-bit codes; quantize with 8 among --bitwidth_options"
        )
    return Theirs(layers, _common(dtypes))


def _data(path: Path) -> dict[str, Any]:
    """The tensors of a raw file, which is read without running code that it may bring."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (*BAD_FILE, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} is cut short, damaged, or brings code, which is not run ({first_sentence(error)}); {AGAIN}"
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__} and no dictionary of tensors; {AGAIN}")
    for key in ("qweight", "scale", "zero"):
        if not isinstance(data.get(key), Tensor):
            raise UserError(f"{path} holds no {key}, which every {RAW_FILE} of MatGPTQ has; {AGAIN}")
    perm = data.setdefault("perm", None)  # as MatGPTQ reads it; whether it was lost shows beside the model
    if not (perm is None or isinstance(perm, Tensor)):
        raise UserError(f"perm of {path} is a {type(perm).__name__} and no order of columns; {AGAIN}")
    return data


def _raw_layer(name: str, data: Mapping[str, Any]) -> NestedWeight:
    _check_codes(name, data["qweight"])
    grid = Grid(_of_groups(name, "scale", data["scale"]), _of_groups(name, "zero", data["zero"]))
    codes = data["qweight"].detach().contiguous()
    _check_grid(name, codes, grid)
    if data["perm"] is not None:
        codes, grid = in_order(name, codes, grid, data["perm"])
    return NestedWeight(codes, grid, MASTER_BITS)


def in_order(name: str, codes: Tensor, grid: Grid, perm: Tensor) -> tuple[Tensor, Grid]:
    """Codes and grid with columns in the order of the layer's inputs.

    UserError where that scatters the inputs of a group, for which a nested folder has no place.
    """
    columns, groups = codes.shape[1], grid.scale.shape[1]
    if perm.dtype.is_floating_point or not torch.equal(perm.flatten().sort().values.long(), torch.arange(columns)):
        raise UserError(f"perm of {name} is no order of its {columns} columns; {AGAIN}")
    place = perm.flatten().argsort()
    group_of_input = (place // (columns // groups)).unflatten(0, (groups, -1))
    if (group_of_input != group_of_input[:, :1]).any():
        raise UserError(
            f"{name} was quantized in the order of activations (--act_order) with {groups} groups, whose inputs lie "
            "scattered in the layer's own order, and a nested folder keeps groups of neighbours; quantize again "
            "without --act_order"
        )
    return codes[:, place].contiguous(), Grid(*(part[:, group_of_input[:, 0]].contiguous() for part in grid))


# --- packed ----------------------------------------------------------------------------------------------------------


def tensors_of(folder: Path, stack: ExitStack) -> dict[Path, tuple[list[str], Callable[[str], Tensor]]]:
    """The files of a packed checkpoint, each with the names of its tensors and what reads one."""

    def find(name: str) -> Path | None:
        return path if (path := folder / name).is_file() else None

    found = {}
    for path in weight_files(find, str(folder)):
        if path.suffix != ".safetensors":
            raise UserError(f"{path} is a pickle, and a packed checkpoint is in safetensors; pack it again")
        try:
            opened = stack.enter_context(safe_open(path, framework="pt"))
            found[path] = list(opened.keys()), opened.get_tensor
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is cut short or damaged ({first_sentence(error)}); copy or download it again"
            ) from error
    return found


def read_packed(folder: Path) -> Theirs:
    """The layers of a packed checkpoint; UserError for a folder that is damaged, or of another master."""
    facts = quantization_of(folder)
    if facts.get("master_bitwidth") != MASTER_BITS:
        raise UserError(
            f"{folder} has master_bitwidth {facts.get('master_bitwidth')}, and MatGPTQ's slices are those of "
            f"{MASTER_BITS}-bit codes; quantize with 8 among --bitwidth_options"
        )
    with ExitStack() as stack:
        readers = {name: reader for names, reader in tensors_of(folder, stack).values() for name in names}
        layers, dtypes = {}, set[torch.dtype]()
        for name in sorted(key.removesuffix(".qweight") for key in readers if key.endswith(".qweight")):
            if f"{name}.scales" not in readers:
                raise UserError(f"{folder} holds {name}.qweight and no {name}.scales; copy or download it again")
            codes, scale = (readers[key](key) for key in (f"{name}.qweight", f"{name}.scales"))
            layers[name] = _packed_layer(name, codes, scale, facts.get("group_size"))
            dtypes.add(scale.dtype)
    if not layers:
        raise UserError(f"{folder} holds no <layer>.qweight; copy or download it again, or pack it again")
    return Theirs(layers, _common(dtypes))


def _packed_layer(name: str, codes: Tensor, stored: Tensor, group_size: object) -> NestedWeight:
    _check_codes(name, codes)
    scale = _of_groups(name, "scales", stored)
    _check_grid(name, codes, grid := Grid(scale, torch.full_like(scale, MIDDLE)))
    groups = 1 if group_size == -1 else codes.shape[1] / group_size if isinstance(group_size, int) and group_size else 0
    if scale.shape[1] != groups:
        raise UserError(
            f"{name} has {scale.shape[1]} groups for {codes.shape[1]} inputs, and config.json says "
            f"group_size {group_size}; put the right one there"
        )
    return NestedWeight(codes, grid, MASTER_BITS)


# --- what both have in common ----------------------------------------------------------------------------------------


def _check_codes(name: str, codes: Tensor) -> None:
    if codes.dtype != torch.uint8 or codes.ndim != 2 or codes.layout != torch.strided or not codes.numel():
        raise UserError(
            f"qweight of {name} is {_kind(codes)}, and MatGPTQ keeps one 8-bit code a weight, uint8 [out, in]; "
            "give a checkpoint of MatGPTQ"
        )


def _of_groups(name: str, kind: str, numbers: Tensor) -> Tensor:
    if not numbers.dtype.is_floating_point or numbers.ndim != 2 or numbers.layout != torch.strided:
        raise UserError(f"{kind} of {name} is {_kind(numbers)}, and should be numbers [out, groups]; {AGAIN}")
    return numbers.detach().float()


def _check_grid(name: str, codes: Tensor, grid: Grid) -> None:
    rows, columns = codes.shape
    for kind, numbers in grid._asdict().items():
        groups = numbers.shape[1]
        if numbers.shape != grid.scale.shape or len(numbers) != rows or not groups or columns % groups:
            raise UserError(
                f"{kind} of {name} is {tuple(numbers.shape)}, which does not fit codes {(rows, columns)}; {AGAIN}"
            )
    usable = grid.scale.isfinite() & (grid.scale > 0) & grid.zero.isfinite()
    if not usable.all():
        row = int((~usable).any(1).nonzero()[0])
        raise UserError(
            f"row {row} of {name} has the scale {grid.scale[row].min():.3g} and the zero {grid.zero[row].max():.3g}, "
            "which MatGPTQ leaves unset where it is given no --group_size; quantize again with --group_size 128"
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _common(dtypes: set[torch.dtype]) -> str:
    """The name of the one dtype, or of float32, which holds the numbers of them all."""
    names = [name for name, dtype in DTYPES.items() if dtypes == {dtype}]
    return names[0] if names else "float32"
