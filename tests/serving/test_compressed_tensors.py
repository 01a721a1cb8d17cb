"""Exports in compressed-tensors' layout: its library and transformers read the weights that the checkpoint reads."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.entrypoints.convert.converters import CompressedTensorsDequantizer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from matquant.codes.nested import Transform, materialize
from matquant.errors import UserError
from matquant.notation import Plan, Slice
from matquant.runs.checkpoint import load_checkpoint
from matquant.serving.engines.compressed_tensors import CompressedTensors, packed_words
from matquant.serving.export import export_readout
from tests import families, mixtures
from tests.exports import (
    ALIGNED,
    ALL_LINEAR,
    CHANNELS,
    REAL,
    SYMMETRIC,
    logits,
    mixed,
    nested_layers,
    ours,
    source,
    trained,
)

FORMAT = CompressedTensors()
PLANS = ("int8", "int6", "int4", "int3", "int2", "int2+ep", "int7+ep")


GRIDS = {"aligned": ALIGNED, "symmetric": SYMMETRIC, "channels": CHANNELS}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return cache(lambda grid: trained(tmp_path_factory.mktemp(grid), *ALL_LINEAR, *GRIDS[grid]))


@pytest.fixture(scope="module")
def aligned(cells):
    return cells("aligned")


@pytest.fixture(scope="module")
def symmetric(cells):
    return cells("symmetric")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("plan", PLANS)
def test_transformers_reads_what_the_checkpoint_reads(cells, grid, plan, tmp_path):
    cell = cells(grid)
    record = export_readout(cell, FORMAT, Plan.parse(plan), tmp_path / "served")
    assert str(record.exactness) == "exact"
    assert record.notes == []
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "served")
    assert torch.equal(logits(model), ours(cell, Plan.parse(plan)))


WIDTHS = {"0.mlp.down_proj": "int8", "1.mlp.down_proj": "int3", "o_proj": "int2+ep"}


def test_transformers_reads_several_widths_on_a_symmetric_grid(symmetric, tmp_path):
    plan = mixed(tmp_path, symmetric, WIDTHS)
    record = export_readout(symmetric, FORMAT, plan, tmp_path / "served")
    groups = config_of(tmp_path / "served")["config_groups"]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [8, 4, 3]
    assert "not with dequantize=True" in record.notes[0]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "served")), ours(symmetric, plan))


def test_the_library_reads_several_widths_with_zeros_and_transformers_refuses_them(aligned, tmp_path):
    plan, served = mixed(tmp_path, aligned, WIDTHS), tmp_path / "served"
    record = export_readout(aligned, FORMAT, plan, served)
    assert record.notes[0].startswith("transformers reads no folder of several widths with zeros")
    with pytest.raises(RuntimeError, match="mismatched"):
        AutoModelForCausalLM.from_pretrained(served)
    tensors = CompressedTensorsDequantizer(served, dtype=torch.float32).process(load_file(served / "model.safetensors"))
    config = AutoConfig.from_pretrained(served)
    del config.quantization_config
    assert torch.equal(logits(loaded_with(config, tensors)), ours(aligned, plan))


def loaded_with(config, tensors):
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(tensors)
    return model


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 31, 32, 45, 64])
def test_words_are_those_of_the_library(bits, columns):
    codes = torch.randint(0, 1 << bits, (5, columns), generator=torch.Generator().manual_seed(0))
    theirs = pack_to_int32((codes - (1 << bits - 1)).to(torch.int8), bits)
    assert torch.equal(packed_words(codes.to(torch.uint8), bits), theirs)


def test_layers_that_are_not_quantized_are_ignored_by_name(tmp_path):
    cell = trained(tmp_path, *SYMMETRIC)
    export_readout(cell, FORMAT, Plan.parse("int4"), tmp_path / "served")
    config = config_of(tmp_path / "served")
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    attention = [f"model.layers.{block}.self_attn.{name}_proj" for block in range(2) for name in "qkvo"]
    assert config["ignore"] == [*attention, "lm_head"]
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "served")), ours(cell, Plan.parse("int4"))
    )


def test_zeros_between_codes_are_rounded_if_asked_and_the_error_is_that_of_the_weights(tmp_path):
    cell, plan = trained(tmp_path, *REAL), Plan.parse("int4")
    message = r"those of 6 layers are none; .*, or train with grid\.zero=aligned_int4"
    with pytest.raises(UserError, match=message) as refusal:
        export_readout(cell, FORMAT, plan, tmp_path / "served")
    assert not (tmp_path / "served").exists()
    record = export_readout(cell, FORMAT, plan, tmp_path / "served", round_zeros=True)
    assert str(record.exactness) in str(refusal.value)
    assert json.loads((tmp_path / "served" / "export.json").read_text())["inexact_layers"] == 6
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "served")
    layers = load_checkpoint(cell.run.checkpoint, cell.cell).layers
    error, total = 0.0, 0.0
    for name, nested in layers.items():
        weight = nested.at(Slice(4)).weight.double()
        error += (read.get_submodule(name).weight.double() - weight).square().sum().item()
        total += weight.square().sum().item()
    assert record.exactness.relative_error == pytest.approx((error / total) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("widths", "named"),
    [
        ({"0.mlp.up_proj": "int2"}, "model.layers.0.mlp.gate_proj int4, model.layers.0.mlp.up_proj int2"),
        ({"1.self_attn.k_proj": "int4+ep"}, "model.layers.1.self_attn.k_proj int4[+]ep"),
    ],
)
def test_widths_that_differ_within_fused_layers_are_refused_with_their_names(symmetric, tmp_path, widths, named):
    with pytest.raises(UserError, match=named):
        export_readout(symmetric, FORMAT, mixed(tmp_path, symmetric, widths), tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_fused_layers_that_are_quantized_in_part_are_refused():
    model = families.loaded("llama")
    layers = nested_layers(model.model)
    del layers["model.layers.1.self_attn.v_proj"]
    with pytest.raises(UserError, match=r"1\.self_attn\.v_proj; the last of them are not quantized"):
        FORMAT.refuse(source(model, layers, Plan.parse("int4")))


@pytest.mark.parametrize("load", [lambda: families.loaded("gpt2"), lambda: mixtures.loaded("mixtral")])
def test_layers_that_transformers_builds_in_another_way_are_refused(load):
    model = load()
    with pytest.raises(UserError, match=r"compressed-tensors cannot hold .* more: transformers keeps them"):
        FORMAT.refuse(source(model, nested_layers(model.model), Plan.parse("int4")))


def test_transformed_layers_are_refused():
    model = families.loaded("llama")
    layers = {
        name: nested._replace(transform=Transform(torch.ones(nested.codes.shape[1])))
        for name, nested in nested_layers(model.model).items()
    }
    with pytest.raises(UserError, match=r"base\.transformation divides their weights by input channel"):
        FORMAT.refuse(source(model, layers, Plan.parse("int4")))


@pytest.mark.parametrize("name", ["arcee", "gpt_bigcode", "gemma3 with images"])
def test_other_architectures_are_read_without_a_difference(name, tmp_path):
    plan, model = Plan.parse("int3"), families.loaded(name)
    layers = nested_layers(model.model)
    exported = source(model, layers, plan)
    FORMAT.refuse(exported)
    FORMAT.write(tmp_path, exported, lambda layer: FORMAT.hold(layer, exported.read(layer)))
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(read), logits(materialize(families.loaded(name).model, layers, plan)))
