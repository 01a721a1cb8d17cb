"""MatGPTQ's checkpoints: read-outs are those of its own slicing, what was lost is refused, and no pickle is run."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import matquant
from matquant.codes.nested import NestedWeight, nest
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.codes.slicing import slice_codes
from matquant.command import main as command
from matquant.config.cell import GridSpec
from matquant.errors import UserError
from matquant.models.loading import load_model
from matquant.notation import Slice
from matquant.serving.imports import import_matgptq
from reference.matgptq_reference import KERNEL_WIDTHS, kernel_weight, layer, slice_code, weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYERS = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj")
SYMMETRIC = GridSpec(group_size=32, symmetric=True, scale_dtype="bfloat16")
ASYMMETRIC = GridSpec(group_size=32, zero="rounded", scale_dtype="bfloat16")
BY_ROW = GridSpec(group_size=None, zero="rounded", scale_dtype="bfloat16")

# --- the arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_their_slice_of_every_code_is_ours(bits):
    ours = slice_codes(torch.arange(256, dtype=torch.uint8), Slice(bits), parent_bits=8)
    assert ours.tolist() == [slice_code(code, bits) << (8 - bits) for code in range(256)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_their_weight_of_every_code_is_ours_rounded_to_their_dtype(dtype):
    scales = torch.rand(3, generator=torch.Generator().manual_seed(0)).to(dtype) / 100
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    for zero in (0, 100, 128, 255):
        grid = Grid(scales.float()[:, None], torch.full((3, 1), float(zero)))
        for bits in range(1, 9):
            ours = NestedWeight(codes, grid, 8).at(Slice(bits)).weight.to(dtype)
            at = torch.tensor(zero, dtype=dtype)
            theirs = [torch.stack([weight(code, scale, at, bits) for code in range(256)]) for scale in scales]
            assert torch.equal(ours, torch.stack(theirs))


@pytest.mark.parametrize("bits", KERNEL_WIDTHS)
def test_their_kernel_reads_the_zero_that_no_file_says(bits):
    scale = torch.tensor(0.0123)
    ours = NestedWeight(torch.arange(256, dtype=torch.uint8)[None], Grid(scale[None, None], torch.tensor([[128.0]])), 8)
    theirs = torch.stack([kernel_weight(code, scale, bits) for code in range(256)])
    assert torch.equal(ours.at(Slice(bits)).weight[0], theirs)


# --- folders as their programs leave them ----------------------------------------------------------------------------


@pytest.fixture
def unquantized(tiny_study, tmp_path) -> Path:
    """The folder of a small model in bfloat16."""
    study = tiny_study("base=minmax", "bits=int8")
    model, tokenizer = load_model(study.cells[0].model, cache=tmp_path, dtype="bfloat16", device=torch.device("cpu"))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quantized(folder: Path, spec: GridSpec, perms: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The file that quant.py saves of two layers of a model: in the order of `perms` where there is one."""
    weights = load_file(folder / "model.safetensors")
    saved = {}
    for name in LAYERS:
        perm = perms.get(name)
        weight = weights[f"{name}.weight"].float()
        weight = weight if perm is None else weight[:, perm]
        nested = nest(weight, minmax_grid(weight, 8, spec), 8)
        scale, zero = (part.bfloat16() for part in nested.grid)
        saved[name] = {"qweight": nested.codes, "scale": scale, "zero": zero, "perm": perm}
    return saved


def save_raw(folder: Path, layers: Mapping[str, Mapping[str, Any]]) -> Path:
    for name, data in layers.items():
        (folder / name).mkdir(parents=True)
        torch.save(dict(data), folder / name / "data.pt")
    return folder


@pytest.fixture
def raw(unquantized, tmp_path) -> Callable[..., Path]:
    def make(spec: GridSpec = SYMMETRIC, perms: Mapping[str, Tensor] | None = None) -> Path:
        return save_raw(tmp_path / "raw", quantized(unquantized, spec, perms or {}))

    return make


@pytest.fixture
def packed(raw, unquantized, tmp_path) -> Callable[..., Path]:
    """A raw checkpoint as pack_quantized_model.py packs it: codes and scales, and nothing else."""

    def make(*arguments: Any, group_size: int = 32) -> Path:
        folder, source = tmp_path / "packed", raw(*arguments)
        shutil.copytree(unquantized, folder)
        tensors = load_file(folder / "model.safetensors")
        for name in LAYERS:
            data = torch.load(source / name / "data.pt", weights_only=True)
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.qweight": data["qweight"], f"{name}.scales": data["scale"]}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        configure(folder, group_size=group_size)
        return folder

    return make


def configure(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / "config.json").read_text())
    facts["quantization_config"] = {
        "quant_method": "matgptq_quant",
        "master_bitwidth": 8,
        "inference_bitwidth": 4,
        "group_size": 32,
        "quant_dtype": "bfloat16",
        "modules_to_not_convert": ["lm_head", "norm"],
    } | changes
    (folder / "config.json").write_text(json.dumps(facts))


def weights_of(folder: Path, bits: int) -> dict[str, Tensor]:
    model, _ = matquant.load(folder, f"int{bits}")
    return {name: model.get_submodule(name).get_parameter("weight").detach() for name in LAYERS}


# --- what comes in ---------------------------------------------------------------------------------------------------


def orders() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {LAYERS[0]: torch.randperm(64, generator=generator), LAYERS[1]: torch.randperm(32, generator=generator)}


def groups_exchanged() -> dict[str, Tensor]:
    """An order in which groups change places and inputs change places inside groups."""
    inside = orders()[LAYERS[1]]
    return {LAYERS[0]: torch.cat([inside + 32, inside.flip(0)]), LAYERS[1]: inside}


@pytest.mark.parametrize(
    ("spec", "perms"),
    [(SYMMETRIC, {}), (ASYMMETRIC, {}), (BY_ROW, {}), (BY_ROW, orders()), (ASYMMETRIC, groups_exchanged())],
    ids=["symmetric", "asymmetric", "by row", "by row, in the order of activations", "groups exchanged"],
)
def test_a_raw_checkpoint_is_read_at_every_width_as_they_read_it(raw, unquantized, tmp_path, spec, perms):
    source = raw(spec, perms)
    import_matgptq(source, tmp_path / "served", model=str(unquantized))
    for bits in (8, 6, 4, 3, 2):
        for name, ours in weights_of(tmp_path / "served", bits).items():
            data = torch.load(source / name / "data.pt", weights_only=True)
            assert torch.equal(ours, layer(data["qweight"], data["scale"], data["zero"], data["perm"], bits))


def test_what_is_not_quantized_stays_as_the_model_has_it(raw, unquantized, tmp_path):
    import_matgptq(raw(), tmp_path / "served", model=str(unquantized))
    model, tokenizer = matquant.load(tmp_path / "served", "int4")
    read, before = model.state_dict(), load_file(unquantized / "model.safetensors")
    rest = [name for name in before if name.removesuffix(".weight") not in LAYERS]
    assert len(rest) > 10
    assert all(torch.equal(read[name], before[name]) for name in rest)
    assert tokenizer.encode("a text") == matquant.load(tmp_path / "served", "int2")[1].encode("a text")


@pytest.mark.parametrize("compared", [False, True])
def test_a_packed_checkpoint_is_read_as_the_raw_one_it_was_made_of(packed, unquantized, tmp_path, compared):
    said = import_matgptq(packed(), tmp_path / "served", model=str(unquantized) if compared else None)
    assert ("not compared" in said) is not compared
    for bits in (8, 4, 3, 2):
        for name, ours in weights_of(tmp_path / "served", bits).items():
            data = torch.load(tmp_path / "raw" / name / "data.pt", weights_only=True)
            assert torch.equal(ours, layer(data["qweight"], data["scale"], data["zero"], None, bits))
    origin = json.loads((tmp_path / "served" / "nested.json").read_text())["imported"]
    assert (origin["format"], origin["layout"], origin["quantization_config"]["group_size"]) == (
        "matgptq",
        "packed",
        32,
    )


def test_a_packed_checkpoint_in_several_files_is_read_as_one(packed, tmp_path):
    folder = packed()
    tensors = load_file(folder / "model.safetensors")
    parts = {"a.safetensors": {}, "b.safetensors": {}}
    for name, tensor in tensors.items():  # scales lie in another file than their codes
        parts["b.safetensors" if name.endswith(".scales") else "a.safetensors"][name] = tensor
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    places = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()
    import_matgptq(folder, tmp_path / "served")
    assert set(weights_of(tmp_path / "served", 3)) == set(LAYERS)


# --- what was lost on the way ----------------------------------------------------------------------------------------


def refusal(theirs: Path, folder: Path, model: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        import_matgptq(theirs, folder, model=None if model is None else str(model))
    assert not folder.exists()
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]  # nothing is left beside
    return str(caught.value)


@pytest.mark.parametrize("compared", [False, True])
def test_a_packed_checkpoint_that_lost_its_zeros_is_refused(packed, unquantized, tmp_path, compared):
    said = refusal(packed(ASYMMETRIC), tmp_path / "served", unquantized if compared else None)
    assert "this checkpoint was asymmetric" in said
    assert "has dropped its zeros; import the raw folder" in said


def test_a_packed_checkpoint_that_lost_the_order_of_its_columns_is_refused_beside_its_model(
    packed, unquantized, tmp_path
):
    said = refusal(packed(SYMMETRIC, orders()), tmp_path / "served", unquantized)
    assert "further from the weights of" in said
    assert "the order of its columns was lost" in said


def test_a_raw_checkpoint_that_lost_the_order_of_its_columns_is_refused(unquantized, tmp_path):
    layers = quantized(unquantized, BY_ROW, orders())
    for data in layers.values():
        del data["perm"]
    said = refusal(save_raw(tmp_path / "raw", layers), tmp_path / "served", unquantized)
    assert "the order of its columns was lost" in said


def test_groups_that_the_order_of_activations_scatters_are_refused_by_name(raw, unquantized, tmp_path):
    said = refusal(raw(SYMMETRIC, orders()), tmp_path / "served", unquantized)
    assert said.startswith(f"{LAYERS[0]} was quantized in the order of activations (--act_order) with 2 groups")
    assert said.endswith("quantize again without --act_order")


def test_scales_that_were_never_set_are_refused(unquantized, tmp_path):
    layers = quantized(unquantized, BY_ROW, {})
    layers[LAYERS[0]]["scale"] = torch.full_like(layers[LAYERS[0]]["scale"], 3e4)
    assert "its scales were never set" in refusal(save_raw(tmp_path / "raw", layers), tmp_path / "served", unquantized)


# --- damaged and foreign files ---------------------------------------------------------------------------------------


class Code:
    """An object whose pickle writes a file when it is loaded by a reader that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_brings_code_is_refused_and_does_not_run(raw, unquantized, tmp_path):
    place = raw() / LAYERS[0] / "data.pt"
    data = torch.load(place, weights_only=True)
    torch.save({**data, "more": Code(tmp_path / "ran")}, place)
    said = refusal(tmp_path / "raw", tmp_path / "served", unquantized)
    assert "brings code, which is not run" in said
    assert not (tmp_path / "ran").exists()
    torch.load(place, weights_only=False)  # a reader that trusts it does run it
    assert (tmp_path / "ran").exists()


RAW_FAULTS = {
    "no qweight": ({"qweight": None}, "holds no qweight"),
    "no zero": ({"zero": None}, "holds no zero"),
    "codes of 32 bits": ({"qweight": torch.zeros(32, 64, dtype=torch.int32)}, "qweight of .* is int32 \\[32, 64\\]"),
    "codes without columns": ({"qweight": torch.zeros(32, dtype=torch.uint8)}, "is uint8 \\[32\\]"),
    "a master of 4 bits": ({"qweight": torch.full((32, 64), 15, dtype=torch.uint8)}, "its master has 4 bits"),
    "scales of other rows": ({"scale": torch.ones(31, 2)}, r"scale of .* is \(31, 2\), which does not fit codes"),
    "groups that do not divide": ({"scale": torch.ones(32, 3), "zero": torch.ones(32, 3)}, "which does not fit codes"),
    "fewer zeros": ({"zero": torch.ones(32, 1)}, r"zero of .* is \(32, 1\)"),
    "scales of whole numbers": ({"scale": torch.ones(32, 2, dtype=torch.int64)}, "scale of .* is int64"),
    "scales of zero": ({"scale": torch.zeros(32, 2)}, "row 0 of .* has the scale 0 .* --group_size 128"),
    "a scale that is no number": ({"scale": torch.full((32, 2), torch.nan)}, "has the scale nan"),
    "no order": ({"perm": torch.zeros(64, dtype=torch.int64)}, "is no order of its 64 columns"),
    "an order of fewer": ({"perm": torch.arange(63)}, "is no order of its 64 columns"),
    "an order in words": ({"perm": "descending"}, "is a str and no order"),
    "the codes of another layer": ({"qweight": torch.full((32, 32), 200, dtype=torch.uint8)}, "in its codes; name"),
}


@pytest.mark.parametrize(("changes", "said"), RAW_FAULTS.values(), ids=RAW_FAULTS)
def test_a_raw_file_that_is_not_as_theirs_are_is_refused_by_name(unquantized, tmp_path, changes, said):
    layers = quantized(unquantized, SYMMETRIC, {})
    if "qweight" in changes and changes["qweight"] is not None and "master" in said:
        del layers[LAYERS[1]]
    layers[LAYERS[0]] |= changes
    assert re.search(said, refusal(save_raw(tmp_path / "raw", layers), tmp_path / "served", unquantized))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


FOLDER_FAULTS = {
    "cut short": (lambda folder: cut(folder / LAYERS[0] / "data.pt"), "is cut short, damaged"),
    "something else": (lambda folder: (folder / LAYERS[0] / "data.pt").write_text("no"), "is cut short, damaged"),
    "a list": (lambda folder: torch.save([1], folder / LAYERS[0] / "data.pt"), "holds a list"),
    "a layer without a file": (lambda folder: (folder / "model.layers.1.mlp.up_proj").mkdir(), "holds no data.pt"),
    "a layer of another model": (
        lambda folder: (folder / LAYERS[0]).rename(folder / "model.layers.9.mlp.down_proj"),
        "has no layer model.layers.9.mlp.down_proj; name the model that was quantized by --model",
    ),
    "the head": (
        lambda folder: (folder / LAYERS[0]).rename(folder / "model.embed_tokens"),
        "is Embedding|in its codes",
    ),
}


@pytest.mark.parametrize(("damage", "said"), FOLDER_FAULTS.values(), ids=FOLDER_FAULTS)
def test_a_raw_folder_that_is_not_whole_is_refused(raw, unquantized, tmp_path, damage, said):
    damage(raw())
    assert re.search(said, refusal(tmp_path / "raw", tmp_path / "served", unquantized))


def replace_tensors(folder: Path, **tensors: Tensor | None) -> None:
    path = folder / "model.safetensors"
    changed = load_file(path) | {f"{LAYERS[0]}.{key}": tensor for key, tensor in tensors.items()}
    save_file({name: one for name, one in changed.items() if one is not None}, path, metadata={"format": "pt"})


def drop(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    save_file({key: one for key, one in load_file(path).items() if key != name}, path, metadata={"format": "pt"})


PACKED_FAULTS = {
    "cut short": (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is cut short or damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "packed holds no weights"),
    "no scales": (lambda folder: replace_tensors(folder, scales=None), f"holds {LAYERS[0]}.qweight and no"),
    "neither": (lambda folder: replace_tensors(folder, scales=None, qweight=None), "packed lacks 1 .* of its model"),
    "another tensor": (lambda folder: drop(folder, "model.norm.weight"), "packed lacks 1 .*: model.norm.weight"),
    "codes of 32 bits": (
        lambda folder: replace_tensors(folder, qweight=torch.zeros(32, 16, dtype=torch.int32)),
        "is int32",
    ),
    "other groups": (lambda folder: configure(folder, group_size=64), "has 2 groups for 64 inputs, and .* 64; put"),
    "no group size": (lambda folder: configure(folder, group_size=None), "group_size None"),
    "a master of 4 bits": (lambda folder: configure(folder, master_bitwidth=4), "has master_bitwidth 4"),
    "another method": (lambda folder: configure(folder, quant_method="gptq"), "says quant_method gptq"),
    "a broken description": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
}


@pytest.mark.parametrize(("damage", "said"), PACKED_FAULTS.values(), ids=PACKED_FAULTS)
def test_a_packed_folder_that_is_not_whole_is_refused(packed, tmp_path, damage, said):
    folder = packed()
    damage(folder)
    message = refusal(folder, tmp_path / "served")
    assert re.search(said, message)
    assert ".matgptq." not in message  # a folder that is gone when it is read


def test_folders_that_are_none_of_theirs_are_refused(unquantized, raw, tmp_path):
    (tmp_path / "empty").mkdir()
    plain = tmp_path / "gptq" / LAYERS[0]
    plain.mkdir(parents=True)
    torch.save(torch.ones(2, 2), plain / "4.pt")
    raw()
    (tmp_path / "above").mkdir()
    (tmp_path / "raw").rename(tmp_path / "above" / "Tiny")
    for folder, said in {
        "nowhere": "is not a folder",
        "empty": "holds neither <layer>/data.pt nor a config.json",
        "model": "says no quantization",
        "gptq": "expanded at one width; quantize with --method matgptq",
        "above": f"is the folder above MatGPTQ's layers; give {tmp_path / 'above' / 'Tiny'}",
    }.items():
        assert said in refusal(tmp_path / folder, tmp_path / "served", unquantized)


def test_the_command_says_what_is_missing_and_its_remedy_works(raw, unquantized, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("matquant.command.dispatch.log_to_stderr", lambda: None)
    words = ["import", "matgptq", str(raw()), str(tmp_path / "served")]
    assert command(words) == 2
    assert "add --model MODEL" in capsys.readouterr().err
    assert command([*words, "--model", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder; give one that save_pretrained wrote" in capsys.readouterr().err
    assert command([*words, "--model", str(unquantized)]) == 0
    assert "every width of 2 layers" in capsys.readouterr().out
    assert command([*words, "--model", str(unquantized)]) == 2
    assert "is there already" in capsys.readouterr().err
