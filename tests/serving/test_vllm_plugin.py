"""The plugin of vLLM: it hands over the weights that transformers reads, expanded or packed."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from matquant.errors import UserError
from matquant.models.loading import load_model
from matquant.serving.load import load
from reference.humming_reference import read_weight
from tests.nested_folders import quantized, written
from tests.vllm_stand_in import FUSED, LinearBase, Served, serve, stand_in

PLANS = ["int8", "int3", "int2+ep", "pyramid@4", None]


@pytest.fixture
def folder(tmp_path, tiny_study):
    """A nested folder of every linear layer of a tiny Llama."""
    study = tiny_study("base=minmax", "bits=int8")
    loaded = load_model(
        study.cells[0].model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    )
    layers = quantized(loaded.model, scope="ffn_attention")
    return written(tmp_path / "nested", loaded, layers)


def shapes(folder: Path) -> dict[str, tuple[int, int]]:
    layers = json.loads((folder / "nested.json").read_text())["layers"]
    return {name: tuple(layer["shape"]) for name, layer in layers.items()}


def parts_of(name: str) -> list[str]:
    stem, _, last = name.rpartition(".")
    return [f"{stem}.{part}" for part in FUSED.get(last, [last])]


def read(folder: Path, plan: str | None) -> dict[str, torch.Tensor]:
    return dict(load(folder, plan)[0].state_dict())


@pytest.mark.parametrize("plan", PLANS)
def test_expanded_layers_hold_what_transformers_reads(folder, monkeypatch, plan):
    served, ours = serve(stand_in(monkeypatch), folder, plan, shapes(folder)), read(folder, plan)
    for name, layer in served.layers.items():
        assert torch.equal(layer.weight, torch.cat([ours[f"{part}.weight"] for part in parts_of(name)]))
        assert layer.processed
    assert served.rest.keys() == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} | {
        name for name in ours if "layernorm" in name
    }
    assert all(torch.equal(tensor, ours[name]) for name, tensor in served.rest.items())


@pytest.mark.parametrize("plan", PLANS)
def test_on_a_gpu_layers_stay_at_their_bits_and_read_as_the_slow_twin_reads_them(folder, monkeypatch, plan):
    served = serve(stand_in(monkeypatch, cuda=True), folder, plan, shapes(folder), dtype=torch.bfloat16)
    ours = read(folder, plan)
    for name, layer in served.layers.items():
        tensors = {f"one.{kind}": tensor for kind, tensor in layer.named_parameters()}
        weights = torch.cat([ours[f"{part}.weight"] for part in parts_of(name)])
        error = read_weight(tensors, "one", layer.quant_method.config) - weights
        # One rounding of the scale and one of the zero to eight bits.
        assert error.norm() < 2**-7 * weights.norm()


def test_a_cpu_or_float32_or_the_users_word_expand_what_a_gpu_would_keep_packed(folder, monkeypatch):
    def packed(served: Served) -> set[bool]:
        return {layer.weight.dtype == torch.int32 for layer in served.layers.values()}

    vllm, layers = stand_in(monkeypatch, cuda=True), shapes(folder)
    assert packed(serve(vllm, folder, "int4", layers, dtype=torch.float16)) == {True}
    assert packed(serve(vllm, folder, "int4", layers, dtype=torch.float32)) == {False}
    assert packed(serve(vllm, folder, "int4", layers, dtype=torch.float16, expanded=True)) == {False}
    assert packed(serve(stand_in(monkeypatch), folder, "int4", layers, dtype=torch.float16)) == {False}


def test_a_kind_of_model_whose_weights_vllm_turns_around_is_expanded_on_a_gpu_too(folder, monkeypatch):
    method = stand_in(monkeypatch, cuda=True).methods["matquant"].from_config({"plan": "int4"})
    for model_type, kept in (("llama", torch.int32), ("gpt_neox", torch.float16)):
        method.maybe_update_config(str(folder), hf_config=SimpleNamespace(model_type=model_type))
        layer = LinearBase((32, 64), method, "model.layers.0.mlp.down_proj", torch.float16)
        assert layer.weight.dtype == kept


def test_names_that_vllm_maps_are_found(folder, monkeypatch):
    method = stand_in(monkeypatch).methods["matquant"].from_config({"plan": "int4"})
    method.maybe_update_config(str(folder))
    method.apply_vllm_mapper(SimpleNamespace(map_name=lambda name: name.replace("model.", "language_model.model.", 1)))
    layer = LinearBase((64, 32), method, "language_model.model.layers.0.mlp.gate_up_proj", torch.float32)
    assert layer.quant_method.names == [f"model.layers.0.mlp.{part}" for part in ("gate_proj", "up_proj")]


def test_fused_layers_of_different_widths_are_served_expanded_and_refused_packed(folder, monkeypatch, tmp_path):
    layers = shapes(folder)
    plan = tmp_path / "uneven.json"
    plan.write_text(json.dumps({"layers": {name: "int2" if "up_proj" in name else "int4" for name in layers}}))
    vllm = stand_in(monkeypatch, cuda=True)
    with pytest.raises(UserError, match=r'0\.mlp\.gate_proj int4, .*up_proj int2 as one matrix.*"expanded": true'):
        serve(vllm, folder, str(plan), layers, dtype=torch.float16)
    served, ours = serve(vllm, folder, str(plan), layers, expanded=True), read(folder, str(plan))
    for name, layer in served.layers.items():
        assert torch.equal(layer.weight, torch.cat([ours[f"{part}.weight"] for part in parts_of(name)]))


def test_a_layer_that_vllm_has_under_another_name_is_named(folder, monkeypatch):
    layers = {name.replace("down_proj", "down"): shape for name, shape in shapes(folder).items()}
    served = serve(stand_in(monkeypatch), folder, "int4", layers)
    assert "model.layers.0.mlp.down_proj.weight" in served.rest  # vLLM's own loader decides on names it does not know

    vllm = stand_in(monkeypatch)
    monkeypatch.setattr(vllm.plugin._Weights, "__iter__", lambda self: iter(()))
    with pytest.raises(UserError, match=r"has not read all of model\.layers\.0\.self_attn\.q_proj"):
        serve(vllm, folder, "int4", shapes(folder))


def test_plans_and_words_that_cannot_be_are_told_before_anything_is_loaded(folder, monkeypatch):
    method = stand_in(monkeypatch).methods["matquant"]
    with pytest.raises(UserError, match="quantization_config has no bits; give plan"):
        method.from_config({"bits": 3}).maybe_update_config(str(folder))
    with pytest.raises(UserError, match="int9"):
        method.from_config({"plan": "int9"}).maybe_update_config(str(folder))
    with pytest.raises(UserError, match="is not a folder"):
        method.from_config({"plan": "int4"}).maybe_update_config(str(folder / "nowhere"))


def test_the_method_is_the_users_even_where_overrides_have_replaced_the_folders_own_words(monkeypatch):
    method = stand_in(monkeypatch).methods["matquant"]
    assert method.override_quantization_method({"plan": "int3", "quant_method": ""}, "matquant") == "matquant"
    assert method.override_quantization_method({"quant_method": "gptq"}, None) is None


def test_models_of_other_methods_load_as_before_and_registering_twice_wraps_once(folder, monkeypatch):
    vllm = stand_in(monkeypatch)
    wrapped = vllm.loader.get_all_weights
    import_module("matquant.serving.vllm_plugin").register()
    assert vllm.loader.get_all_weights is wrapped
    told = SimpleNamespace(quantization=None, model=str(folder), revision=None)
    assert "model.layers.0.mlp.down_proj" in dict(vllm.loader().get_all_weights(told, torch.nn.Module()))  # a plane


def test_the_entry_point_leads_to_the_plugin_which_needs_no_vllm_to_be_imported():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["vllm.general_plugins"]["matquant"].partition(":")
    assert callable(getattr(import_module(module), function))
    assert "vllm" not in sys.modules
