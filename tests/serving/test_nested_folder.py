"""A nested folder: every width out of one folder, equal to what evaluation reads, and not a plane more than needed."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import matquant
from matquant.codes.nested import NestedWeight, Transform, materialize
from matquant.config.cell import GridSpec
from matquant.errors import UserError
from matquant.notation import Plan, Slice
from matquant.serving.nested import places, reading
from matquant.serving.nested.folder import DESCRIPTION, GRIDS, STAMP, plane_file
from matquant.serving.nested.packed import PackedLinear
from matquant.serving.nested.places import nested_folder
from matquant.serving.nested.reading import reading_of
from matquant.serving.nested.unquantized import REMEDY
from tests import families, mixtures
from tests.nested_folders import TOKENS, quantized, written

PLANS = ("int8", "int7", "int4", "int3", "int2", "int1", "int2+ep", "int4+ep", "pyramid@3", "increasing@4")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of a tiny Llama, its unquantized model, and its layers."""
    loaded = families.loaded("llama")
    layers = quantized(loaded.model, grid=GridSpec(group_size=16))
    plans = {"evolution@3": {name: "int4" if number % 2 else "int2" for number, name in enumerate(layers)}}
    return written(tmp_path_factory.mktemp("made") / "nested", loaded, layers, plans=plans), loaded, layers


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS.to(model.device)).logits


@pytest.mark.parametrize("packed", [False, True], ids=["expanded", "packed"])
def test_every_plan_reads_the_logits_that_evaluation_reads(made, packed, device):
    folder, loaded, layers = made
    model, tokenizer = matquant.load(folder, "int5", packed=packed)
    model.to(device)
    plain = copy.deepcopy(loaded.model).to(device)
    layers = {name: nested.to(device) for name, nested in layers.items()}
    assert tokenizer("abc")["input_ids"] == loaded.tokenizer("abc")["input_ids"]
    assert any(isinstance(module, PackedLinear) for module in model.modules()) == packed
    assert {type(module).__name__ for module in model.modules()} - {"PackedLinear"} <= {
        type(module).__name__ for module in loaded.model.modules()
    }
    for text in PLANS:
        assert matquant.reread(model, text) is model
        assert torch.equal(logits(model), logits(materialize(plain, layers, Plan.parse(text)))), text
    found = Plan.parse("evolution@3").found(json.loads((folder / DESCRIPTION).read_text())["plans"]["evolution@3"])
    assert torch.equal(logits(matquant.reread(model, "evolution@3")), logits(materialize(plain, layers, found)))


def test_a_plan_file_and_a_slice_are_plans_too(made, tmp_path):
    folder, loaded, layers = made
    widths = {name: f"int{2 + number % 5}" for number, name in enumerate(layers)}
    (tmp_path / "mine.json").write_text(json.dumps({"layers": widths}))
    model, _ = matquant.load(folder, str(tmp_path / "mine.json"))
    assert torch.equal(
        logits(model), logits(materialize(loaded.model, layers, Plan.parse(str(tmp_path / "mine.json"))))
    )
    matquant.reread(model, Slice(2, extra_precision=True))
    assert str(reading_of(model).plan) == "int2+ep"
    assert torch.equal(logits(model), logits(materialize(loaded.model, layers, Plan.parse("int2+ep"))))


def test_the_whole_parent_is_read_where_no_plan_is_named(made):
    folder, loaded, layers = made
    expected = logits(materialize(loaded.model, layers, Plan.parse("int8")))
    assert torch.equal(logits(matquant.load(folder)[0]), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_from_pretrained_takes_a_width(made):
    folder, loaded, layers = made
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=matquant.MatQuantConfig("int3"))
    assert torch.equal(logits(model), logits(materialize(loaded.model, layers, Plan.parse("int3"))))
    assert type(model) is type(loaded.model)


@pytest.mark.parametrize(
    "imports", ["import matquant, transformers", "from transformers import AutoModel; import matquant"]
)
def test_importing_the_package_registers_it_whatever_was_imported_first(made, imports):
    folder, *_ = made
    use = f"from transformers import AutoModelForCausalLM as A; print(type(A.from_pretrained({str(folder)!r})))"
    code = f"{imports}\n{use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LlamaForCausalLM" in done.stdout, done.stderr


def test_a_program_that_never_imports_the_package_ends_with_what_to_do_and_draws_no_layers(made):
    folder, *_ = made
    code = f"from transformers import AutoModelForCausalLM as A; print(type(A.from_pretrained({str(folder)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert REMEDY in done.stderr
    assert "MISSING" not in done.stderr


def test_no_file_has_a_name_that_transformers_looks_for(made):
    """A transformers without the key of config.json that ends with the remedy finds no weights."""
    folder, *_ = made
    assert not [path.name for path in folder.iterdir() if path.name.startswith(("model", "pytorch_model"))]
    assert (folder / "nested-unquantized.safetensors").is_file()


def as_format_1(folder: Path, to: Path) -> Path:
    """A folder as the first format had it: what is not quantized lay where transformers looks."""
    shutil.copytree(folder, to)
    (to / "nested-unquantized.safetensors").rename(to / "model.safetensors")
    config = json.loads((to / "config.json").read_text())
    del config["transformers_weights"], config["quantization_config"]["weights"]
    (to / "config.json").write_text(json.dumps(config))
    description = json.loads((to / DESCRIPTION).read_text())
    del description["files"]["nested-unquantized.safetensors"]
    (to / DESCRIPTION).write_text(json.dumps({**description, "format_version": 1}))
    return to


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_makes_no_room_for_its_dense_weights(made, monkeypatch, dtype):
    folder, loaded, layers = made
    held = dict[bool, int]()
    read_into = reading.read_into

    def spied(model, *arguments, packed):
        held[packed] = sum(parameter.numel() for parameter in model.parameters())
        read_into(model, *arguments, packed=packed)

    monkeypatch.setattr(reading, "read_into", spied)
    for packed in (False, True):
        model, _ = matquant.load(folder, "int3", packed=packed, dtype=dtype)
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        assert model.get_submodule(next(iter(layers))).weight.dtype == dtype
    dense = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert held == {False: dense, True: dense - sum(nested.codes.numel() for nested in layers.values())}


@pytest.mark.parametrize("packed", [False, True], ids=["expanded", "packed"])
def test_a_folder_of_the_first_format_is_still_read(made, tmp_path, packed):
    folder, loaded, layers = made
    model, _ = matquant.load(as_format_1(folder, tmp_path / "older"), "int3", packed=packed)
    assert torch.equal(logits(model), logits(materialize(loaded.model, layers, Plan.parse("int3"))))


@pytest.mark.parametrize("packed", [False, True], ids=["expanded", "packed"])
def test_what_is_not_quantized_may_lie_in_several_files(made, tmp_path, monkeypatch, packed):
    _, loaded, layers = made
    save = type(loaded.model).save_pretrained
    monkeypatch.setattr(
        type(loaded.model), "save_pretrained", lambda *args, **kwargs: save(*args, max_shard_size="20KB", **kwargs)
    )
    folder = written(tmp_path / "nested", loaded, layers)
    index = json.loads((folder / "nested-unquantized.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("nested-unquantized*.safetensors")}
    assert len(files) > 1
    assert set(index["weight_map"].values()) == files <= json.loads((folder / DESCRIPTION).read_text())["files"].keys()
    model, _ = matquant.load(folder, "int3", packed=packed)
    assert torch.equal(logits(model), logits(materialize(loaded.model, layers, Plan.parse("int3"))))
    (folder / min(files)).unlink()
    with pytest.raises(UserError, match=rf"holds no {min(files)}; write it again"):
        matquant.load(folder, "int3")


def test_a_model_that_was_read_is_saved_as_an_ordinary_one(made, tmp_path):
    folder, *_ = made
    model, _ = matquant.load(folder, "int4")
    model.save_pretrained(tmp_path)
    assert (
        not {"quantization_config", "transformers_weights"} & json.loads((tmp_path / "config.json").read_text()).keys()
    )
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_width_reads_its_planes_and_not_a_byte_more(made, tmp_path):
    folder, _, layers = made
    whole = nested_folder(folder)
    one_plane = sum(nested.codes.numel() // 8 for nested in layers.values())
    grids = sum(tensor.numel() * tensor.element_size() for tensor in load_file(folder / GRIDS).values())
    for bits, planes in [(1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 8)]:
        plan = whole.plan(f"int{bits}")
        assert whole.num_bytes(plan) == planes * one_plane
        before = whole.read.num_bytes
        list(whole.read_at(plan))
        assert whole.read.num_bytes - before == planes * one_plane + grids
        # What is not there cannot have been read.
        less = tmp_path / f"int{bits}"
        shutil.copytree(folder, less)
        for number in range(planes + 1, 9):
            (less / plane_file(number)).unlink()
        matquant.load(less, plan)
        if planes < 8:
            with pytest.raises(UserError, match=rf"holds no {plane_file(planes + 1)}; write it again"):
                matquant.load(less, f"int{bits + 1}")


def test_a_mixed_plan_reads_of_every_layer_what_that_layer_needs(made):
    folder, _, layers = made
    whole = nested_folder(folder)
    widths = [2, 4, 8]
    parts = {name: Slice(widths[number % 3]) for number, name in enumerate(layers)}
    plan = Plan("mixed", layers=tuple(parts.items()))
    expected = sum(min(part.bits + 1, 8) * layers[name].codes.numel() // 8 for name, part in parts.items())
    assert whole.num_bytes(whole.plan(plan)) == expected
    assert whole.files(whole.plan("int3")) == [DESCRIPTION, GRIDS, *(plane_file(number) for number in (1, 2, 3, 4))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16"])
def test_grids_and_models_of_every_dtype_come_back(tmp_path, dtype, scale_dtype):
    loaded = families.loaded("llama", dtype=dtype)
    layers = quantized(loaded.model, grid=GridSpec(group_size=None, scale_dtype=scale_dtype))
    folder = written(tmp_path / "nested", loaded, layers, scale_dtype=scale_dtype)
    for packed in (False, True):
        model, _ = matquant.load(folder, "int3", packed=packed)
        assert next(model.parameters()).dtype == getattr(torch, dtype)
        # Weights and not logits: transformers keeps rotary frequencies in float32, the random model casts them.
        whole = materialize(loaded.model, layers, Plan.parse("int3"))
        assert all(torch.equal(model.get_submodule(name).weight, whole.get_submodule(name).weight) for name in layers)
        assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in model.named_parameters())


@pytest.mark.parametrize("packed", [False, True], ids=["expanded", "packed"])
@pytest.mark.parametrize(
    ("home", "name"),
    [(families, "gpt2"), (families, "gemma3"), (families, "opt"), (mixtures, "mixtral"), (mixtures, "gpt_oss")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_that_store_layers_in_other_ways_come_back(tmp_path, home, name, packed):
    loaded = home.loaded(name)
    layers = quantized(loaded.model, grid=GridSpec(group_size=None), scope="ffn_attention")
    folder = written(tmp_path / "nested", loaded, layers)
    model, _ = matquant.load(folder, "int4", packed=packed)
    for text in ("int4", "int2", "pyramid@3"):
        matquant.reread(model, text)
        assert torch.equal(logits(model), logits(materialize(loaded.model, layers, Plan.parse(text)))), text
    assert not load_file(folder / "nested-unquantized.safetensors").keys() & {f"{name}.weight" for name in layers}


@pytest.mark.parametrize("packed", [False, True], ids=["expanded", "packed"])
@pytest.mark.parametrize("shift", [False, True], ids=["scale", "shift"])
def test_a_transformation_is_undone_at_every_width(tmp_path, packed, shift):
    loaded = families.loaded("llama")
    draw = torch.Generator().manual_seed(0)

    def transformed(nested: NestedWeight) -> NestedWeight:
        rows, columns = nested.codes.shape
        extra = (torch.randn(columns, generator=draw), torch.randn(rows, generator=draw)) if shift else ()
        return nested._replace(transform=Transform(torch.rand(columns, generator=draw) + 0.5, *extra))

    layers = {name: transformed(nested) for name, nested in quantized(loaded.model).items()}
    model, _ = matquant.load(written(tmp_path / "nested", loaded, layers), "int8", packed=packed)
    for text in ("int2", "int4+ep"):
        matquant.reread(model, text)
        assert torch.equal(logits(model), logits(materialize(loaded.model, layers, Plan.parse(text))))


def test_packed_layers_hold_as_many_bits_as_the_plan_says(made):
    folder, _, layers = made
    model, _ = matquant.load(folder, "int3", packed=True)
    weights = sum(nested.codes.numel() for nested in layers.values())
    grids = sum(2 * 4 * nested.grid.scale.numel() for nested in layers.values())
    for text, bits in [("int3", 3), ("int2", 2), ("int2+ep", 3), ("int8", 8)]:
        matquant.reread(model, text)
        packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
        assert len(packed) == len(layers)
        assert sum(module.num_bytes for module in packed) == weights * bits // 8 + grids


def test_packed_layers_are_cast_without_casting_their_grids(made):
    folder, loaded, layers = made
    model, _ = matquant.load(folder, "int3", packed=True)
    model.to(torch.bfloat16)
    whole = materialize(loaded.model, layers, Plan.parse("int3"))
    layer = next(module for module in model.modules() if isinstance(module, PackedLinear))
    name = next(name for name, module in model.named_modules() if module is layer)
    assert torch.equal(layer.weight, whole.get_submodule(name).weight.to(torch.bfloat16))


def test_a_model_generates_and_remembers_what_it_reads(made):
    folder, *_ = made
    model, _ = matquant.load(folder, "int3")
    assert model.generate(TOKENS[:1], max_new_tokens=3, do_sample=False).shape == (1, TOKENS.shape[1] + 3)
    assert str(reading_of(model).plan) == "int3"


# --- what is refused ------------------------------------------------------------------------------------------------


def changed(folder: Path, to: Path, **facts) -> Path:
    """A copy whose description says something else."""
    shutil.copytree(folder, to)
    description = json.loads((to / DESCRIPTION).read_text())
    (to / DESCRIPTION).write_text(json.dumps({**description, **facts}))
    return to


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("int9", r"'int9' is not a read-out plan; did you mean"),
        ("int8+ep", r"reads .* at int8\+ep, and the parent .* is int8; choose"),
        ("full", r"no full read-out; the widest is int8"),
        ("int", r"'int' is not a read-out plan"),
        ("dynamic_program@3", r"does not hold the plan dynamic_program@3; it has evolution@3"),
        ("nowhere.json", r"nowhere.json is not a plan"),
    ],
)
def test_a_plan_that_cannot_be_read_is_one_sentence_and_changes_nothing(made, plan, sentence):
    folder, *_ = made
    with pytest.raises(UserError, match=sentence):
        matquant.load(folder, plan)
    model, _ = matquant.load(folder, "int4")
    before = logits(model)
    with pytest.raises(UserError, match=sentence):
        matquant.reread(model, plan)
    assert torch.equal(logits(model), before)
    assert str(reading_of(model).plan) == "int4"


def test_a_plan_for_other_layers_is_refused(made, tmp_path):
    folder, *_ = made
    (tmp_path / "other.json").write_text(json.dumps({"layers": {"model.layers.9.mlp.up_proj": "int4"}}))
    with pytest.raises(UserError, match=r"give a plan with every quantized layer"):
        matquant.load(folder, str(tmp_path / "other.json"))


def test_a_width_that_a_narrow_parent_has_not_is_refused(tmp_path):
    loaded = families.loaded("llama")
    layers = quantized(loaded.model, parent_bits=4)
    folder = written(tmp_path / "nested", loaded, layers)
    assert not (folder / plane_file(5)).exists()
    with pytest.raises(UserError, match=r"int8 reads .* at int8, and the parent .* is int4; choose a width from int1"):
        matquant.load(folder, "int8")
    model, _ = matquant.load(folder)
    assert torch.equal(logits(model), logits(materialize(loaded.model, layers, Plan.parse("int4"))))


def test_a_newer_format_is_refused_and_a_foreign_folder_too(made, tmp_path):
    folder, loaded, _ = made
    with pytest.raises(UserError, match=r"has format version 3, this program reads up to 2; install a newer one"):
        matquant.load(changed(folder, tmp_path / "newer", format_version=3), "int4")
    with pytest.raises(UserError, match=r"describes something else than a nested folder"):
        matquant.load(changed(folder, tmp_path / "foreign", format="gptq"), "int4")
    loaded.model.save_pretrained(tmp_path / "dense")
    with pytest.raises(UserError, match=r"holds no nested.json; `matquant export nested CELL DIR` writes"):
        matquant.load(tmp_path / "dense", "int4")
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is a run and no nested folder; write one with `matquant export nested "):
        matquant.load(tmp_path / "run", "int4")
    with pytest.raises(UserError, match=r"is not a folder"):
        matquant.load(tmp_path / "nowhere", "int4")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / DESCRIPTION).write_text("{")
    with pytest.raises(UserError, match=r"cannot be read"):
        matquant.load(tmp_path / "broken")
    with pytest.raises(UserError, match=r"does not say the layers"):
        matquant.load(changed(folder, tmp_path / "no layers", layers={"a": {"shape": [1]}}))


@pytest.mark.parametrize("file", [plane_file(1), plane_file(4), GRIDS])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_one_sentence(made, tmp_path, file, keep):
    folder, *_ = made
    shutil.copytree(folder, tmp_path / "cut")
    whole = (folder / file).read_bytes()
    (tmp_path / "cut" / file).write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(UserError, match=rf"{file} cannot be read, it may be cut short .* write it again"):
        matquant.load(tmp_path / "cut", "int3")


def test_codes_of_another_shape_or_layer_are_refused(made, tmp_path):
    folder, _, layers = made
    name = next(iter(layers))
    shutil.copytree(folder, tmp_path / "short")
    planes = load_file(folder / plane_file(2))
    stamp = {STAMP: json.loads((folder / DESCRIPTION).read_text())[STAMP]}
    save_file({**planes, name: planes[name][:-1].clone()}, tmp_path / "short" / plane_file(2), stamp)
    with pytest.raises(UserError, match=r"are not those of a layer"):
        matquant.load(tmp_path / "short", "int3")
    shutil.copytree(folder, tmp_path / "lacking")
    save_file({key: plane for key, plane in planes.items() if key != name}, tmp_path / "lacking" / plane_file(2), stamp)
    with pytest.raises(UserError, match=rf"{plane_file(2)} holds no {name}"):
        matquant.load(tmp_path / "lacking", "int3")
    description = json.loads((folder / DESCRIPTION).read_text())["layers"]
    other = {f"model.layers.7.{name.rpartition('layers.0.')[2]}": description[name], **description}
    with pytest.raises(UserError, match=r"has no layer model\.layers\.7"):
        matquant.load(changed(folder, tmp_path / "other", layers=other), "int3")


def test_a_model_that_is_not_out_of_a_nested_folder_cannot_be_read_again():
    with pytest.raises(UserError, match=r"was not read from a nested folder; load it with matquant.load"):
        matquant.reread(families.loaded("llama").model, "int4")


# --- the hub --------------------------------------------------------------------------------------------------------


def test_of_a_hub_only_the_planes_of_a_width_are_fetched(made, tmp_path, monkeypatch):
    folder, _, layers = made
    fetched: list[str] = []
    cache = tmp_path / "snapshot"
    cache.mkdir()

    def fetch(repo: str, name: str, **words: Any) -> str:
        assert repo == "someone/nested"
        fetched.append(name)
        shutil.copy(folder / name, cache / name)
        return str(cache / name)

    monkeypatch.setattr(places, "hf_hub_download", fetch)
    whole = nested_folder("someone/nested")
    read = dict(whole.read_at(whole.plan("int2")))
    assert fetched == [DESCRIPTION, GRIDS, *(plane_file(number) for number in (1, 2, 3))]
    assert all(torch.equal(read[name].affine().weight, layers[name].at(Slice(2)).weight) for name in layers)


def test_a_repository_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(UserError, match=r"nested.json of someone/nested is not in the local cache and the hub cannot"):
        matquant.load("someone/nested", "int4")
