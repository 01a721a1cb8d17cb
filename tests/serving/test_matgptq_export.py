"""A cell for MatGPTQ's plugin: its kernels would read the same weights, and what they cannot serve is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import matquant
from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import Grid
from matquant.codes.sliced import SlicedWeight
from matquant.command import main as command
from matquant.errors import UserError
from matquant.models.loading import load_model
from matquant.notation import Plan, Slice
from matquant.runs.checkpoint import load_layers
from matquant.runs.tracking import NoTracker
from matquant.serving.engines.formats import LayerShape, Source
from matquant.serving.engines.matgptq_export import MatGPTQ
from matquant.training.train import train
from reference.matgptq_reference import KERNEL_WIDTHS, kernel_weight

LAYERS: tuple[str, ...] = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj")
CELL = ("base=minmax", "bits=int8", "grid=group_32", "grid.symmetric=true", "model.config.hidden_size=64")


@pytest.fixture
def cell(tiny_study, monkeypatch) -> Callable[..., list[str]]:
    """The words that name a trained cell."""

    monkeypatch.setattr("matquant.command.dispatch.log_to_stderr", lambda: None)

    def make(*overrides: str) -> list[str]:
        study = tiny_study(*CELL, *overrides)
        train(study.cells[0], study.setup, NoTracker())
        return [study.cells[0].id, f"paths.runs={study.setup.paths.runs}"]

    return make


def export(words: list[str], folder: Path, *options: str) -> int:
    name, *overrides = words
    return command(["export", "matgptq", name, str(folder), *overrides, *options])


def trained_layers(words: list[str]) -> dict[str, NestedWeight]:
    return dict(load_layers(Path(words[1].partition("=")[2]) / words[0] / "checkpoint" / "nested.safetensors"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cell_goes_out_and_their_kernel_would_read_every_width_of_it(cell, tmp_path, capsys, dtype):
    words = cell(f"grid.scale_dtype={'bfloat16' if dtype == 'bfloat16' else 'float32'}")
    assert export(words, tmp_path / "out", "--dtype", dtype) == 0
    says = "exact" if dtype == "bfloat16" else "exact up to float16 scales"
    assert capsys.readouterr().out.strip().endswith(f"every width of {words[0]} as matgptq, {says}")
    files, layers = load_file(tmp_path / "out" / "model.safetensors"), trained_layers(words)
    for name, nested in layers.items():
        assert f"{name}.weight" not in files
        codes, scales = files[f"{name}.qweight"], files[f"{name}.scales"]
        assert (codes.dtype, scales.dtype) == (torch.uint8, getattr(torch, dtype))
        held = nested._replace(grid=Grid(scales.float(), nested.grid.zero))
        assert torch.allclose(scales.float(), nested.grid.scale, rtol=0 if dtype == "bfloat16" else 1e-3)
        row, columns = 3, codes.shape[1]
        for bits in KERNEL_WIDTHS:
            theirs = [
                kernel_weight(int(codes[row, i]), scales[row, i // 32].float(), bits) for i in range(0, columns, 5)
            ]
            assert torch.equal(held.at(Slice(bits)).weight[row, ::5], torch.stack(theirs))


def test_the_description_is_what_their_plugin_reads(cell, tmp_path):
    words = cell()
    assert export(words, tmp_path / "out", "--dtype", "bfloat16") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["quantization_config"].pop("quant_dtype") == "bfloat16"
    assert config["quantization_config"] == {
        "quant_method": "matgptq_quant",
        "master_bitwidth": 8,
        "inference_bitwidth": 4,
        "group_size": 32,
        "modules_to_not_convert": [
            *("lm_head", "norm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
            "self_attn.qkv_proj",
        ],
    }
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["format"], record["plan"], record["cell_id"]) == ("matgptq", "int8", words[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_went_out_comes_in_again_with_the_same_codes(cell, tmp_path, dtype):
    words = cell("grid.scale_dtype=bfloat16", "scope=ffn_attention")
    assert export(words, tmp_path / "out", "--dtype", dtype) == 0
    assert command(["import", "matgptq", str(tmp_path / "out"), str(tmp_path / "in")]) == 0
    model, _ = matquant.load(tmp_path / "in", "int3")
    for name, nested in trained_layers(words).items():
        held = nested._replace(grid=Grid(nested.grid.scale.to(getattr(torch, dtype)).float(), nested.grid.zero))
        read = model.get_submodule(name).get_parameter("weight")
        assert torch.equal(read, held.at(Slice(3)).weight.to(read.dtype))


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ((), (), "is in float32; add --dtype bfloat16"),
        ((), ("--dtype", "float32"), "is in float32; add --dtype bfloat16"),
        (("grid.symmetric=false",), ("--dtype", "float16"), "no place for zeros.*; train with grid.symmetric=true"),
        (("bits=int4",), ("--dtype", "float16"), "have 4 bits; export a cell of bits=matquant"),
        (("grid.group_size=16",), ("--dtype", "float16"), "groups of 32 or of 128.*; train with grid.group_size=128"),
        (("grid=per_channel",), ("--dtype", "float16"), "groups of 32 or of 128"),
        (("model.config.intermediate_size=72", "grid.group_size=8"), ("--dtype", "float16"), "groups of 32"),
        (("base=omniquant", "base.num_steps=1", "base.transformation=true"), ("--dtype", "float16"), "transformation"),
        (("model.config.hidden_size=40", "grid.group_size=8"), ("--dtype", "float16"), "and 4 more: .* groups of 32"),
    ],
)
def test_what_their_kernels_cannot_serve_is_refused_with_names(cell, tmp_path, capsys, overrides, options, said):
    status = export(cell(*overrides), tmp_path / "out", *options)
    message = capsys.readouterr().err
    assert status == 2
    assert re.search(said, message), message
    assert not (tmp_path / "out").exists()


def test_one_group_a_row_is_a_group_of_32_where_there_are_32_inputs(cell, tmp_path):
    words = cell("model.config.hidden_size=32", "model.config.intermediate_size=96")
    assert export(words, tmp_path / "out", "--dtype", "float16") == 0


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (LayerShape(Slice(8), (24, 64), 32, True, False), "16 outputs together"),
        (LayerShape(Slice(8), (32, 64), 32, True, True), "base.transformation=true divides"),
        (LayerShape(Slice(6), (32, 64), 32, True, False), "theirs are narrower"),
        (LayerShape(Slice(8), (32, 64), 64, True, False), "groups of 32 or of 128"),
    ],
)
def test_layers_that_have_no_place_are_named(tiny_study, tmp_path, shape, said):
    spec = tiny_study("base=minmax", "bits=int8").cells[0].model
    model, tokenizer = load_model(spec, cache=tmp_path, dtype="float32", device=torch.device("cpu"))
    shapes: dict[str, LayerShape] = dict(
        zip(LAYERS, [LayerShape(Slice(8), (32, 64), 32, True, False), shape], strict=True)
    )
    source = Source(model, tokenizer, Plan.parse("int8"), shapes, lambda name: pytest.fail("nothing is read"))
    with pytest.raises(UserError, match=rf"matgptq cannot hold .*{LAYERS[1]}.*{said}"):
        MatGPTQ(torch.float16).refuse(source)


def test_scales_that_float16_does_not_have_are_refused():
    tiny = SlicedWeight(torch.zeros(1, 1, dtype=torch.uint8), Grid(torch.tensor([[1e-8]]), torch.ones(1, 1)), Slice(8))
    with pytest.raises(UserError, match=r"scales of one are smaller .*; add --dtype bfloat16"):
        MatGPTQ(torch.float16).hold("one", tiny)
    assert MatGPTQ(torch.bfloat16).hold("one", tiny).grid.scale > 0
