"""The export for vLLM's Humming kernels: what is written reads as the library's own layout defines it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import minmax_grid
from matquant.codes.sliced import SlicedWeight, sliced
from matquant.config.cell import GridSpec
from matquant.errors import UserError
from matquant.models.loading import LoadedModel, load_model
from matquant.notation import Plan, Slice
from matquant.serving.engines.formats import Exactness, Source
from matquant.serving.engines.humming import Humming, configuration, pattern
from matquant.serving.engines.humming_layout import pack, schema_of, tensors_of
from matquant.serving.export import shapes_of
from reference import humming_reference
from tests.nested_folders import quantized

PLANS = [*(f"int{bits}" for bits in range(1, 9)), "int2+ep", "int7+ep", "pyramid@4"]
FUSED_NAMES = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj", "down_proj": "down_proj", "o_proj": "o_proj"}


@pytest.fixture
def tiny(tiny_study) -> LoadedModel:
    study = tiny_study("base=minmax", "bits=int8")
    return load_model(study.cells[0].model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu"))


def source_of(tiny: LoadedModel, layers: dict[str, NestedWeight], plan: Plan) -> Source:
    shapes = shapes_of(layers, plan)
    return Source(*tiny, plan, shapes, lambda name: sliced(layers[name], shapes[name].part))


def exported(folder: Path, source: Source) -> tuple[Humming, Exactness]:
    """Writes a folder as the command does."""
    format = Humming()
    format.refuse(source)
    exactness = Exactness(format.scale_dtype)
    for name in source.shapes:
        exactness.add(source.read(name), format.hold(name, source.read(name)))
    folder.mkdir()
    format.write(folder, source, lambda name: format.hold(name, source.read(name)))
    return format, exactness


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_codes_are_a_stream_of_bits_over_the_borders_of_words(bits, device):
    codes = torch.randint(0, 2**bits, (3, 96), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    words = pack(codes.to(device), bits)
    assert words.dtype == torch.int32
    assert words.shape == (3, 3 * bits)
    assert torch.equal(humming_reference.read_codes(words, bits), codes.long())


@pytest.mark.parametrize("plan", PLANS)
def test_an_exported_folder_reads_as_the_format_says_it_holds(tmp_path, tiny, plan):
    layers = quantized(tiny.model, scope="ffn_attention")
    source = source_of(tiny, layers, Plan.parse(plan))
    format, exactness = exported(tmp_path / "out", source)
    # bfloat16 has no part of a code for the zero of int8, which may lie anywhere up to 255.
    wide = plan in ("int7", "int8", "int7+ep")
    assert str(exactness).startswith("inexact" if wide else "exact up to bfloat16 scales")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    for name in layers:
        stem, _, last = name.rpartition(".")
        schema = humming_reference.schema_of(config, f"{stem}.{FUSED_NAMES.get(last, last)}")
        assert schema is not None
        held = format.hold(name, source.read(name))
        assert int(schema["b_dtype"].removeprefix("uint")) == held.num_bits
        assert torch.equal(humming_reference.read_weight(tensors, name, schema), held.affine().weight)
    rest = {name for name in tensors if name.rpartition(".")[0] not in layers}
    state = tiny.model.state_dict()
    assert rest == {name for name in state if name.removesuffix(".weight") not in layers}
    assert all(torch.equal(tensors[name], state[name]) for name in rest)


def test_a_model_in_float16_keeps_its_scales_so_and_is_nearer(tmp_path, tiny):
    layers = quantized(tiny.model)
    errors = {}
    for dtype in (torch.bfloat16, torch.float16):
        source = source_of(tiny, layers, Plan.parse("int8"))
        source.model.to(dtype)
        _, exactness = exported(tmp_path / str(dtype), source)
        assert exactness.is_scales_alone is (dtype == torch.float16)
        errors[dtype] = exactness.relative_error
    assert errors[torch.float16] < errors[torch.bfloat16] / 4 < 0.01


def test_one_scale_a_row_is_a_schema_without_groups(tmp_path, tiny):
    layers = quantized(tiny.model, grid=GridSpec(group_size=None))
    source = source_of(tiny, layers, Plan.parse("int3"))
    format, _ = exported(tmp_path / "out", source)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert configuration(source.shapes)["group_size"] == 0
    for name in layers:
        held = format.hold(name, source.read(name)).affine().weight
        assert torch.equal(humming_reference.read_weight(tensors, name, schema_of(3, None)), held)


def test_patterns_fit_the_layers_of_their_numbers_alone_under_both_names():
    names = [f"model.layers.{number}.mlp.{last}" for number in (1, 12) for last in ("up_proj", "gate_proj")]
    config = {"dynamic": {f"-:(?!{pattern(names)})": {}}}
    for name in (*names, "model.layers.12.mlp.gate_up_proj"):
        assert humming_reference.schema_of(config, name) is not None
    for name in (
        "model.layers.11.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.mlp.up_proj_2",
        "lm_head",
    ):
        assert humming_reference.schema_of(config, name) is None


def refused(tiny: LoadedModel, layers: dict[str, NestedWeight], plan: Plan, match: str, **shape: Any) -> None:
    source = source_of(tiny, layers, plan)
    source = replace(source, shapes={name: one._replace(**shape) for name, one in source.shapes.items()})
    with pytest.raises(UserError, match=match):
        Humming().refuse(source)


def test_what_the_kernels_cannot_hold_is_refused_with_names(tiny):
    layers, plan = quantized(tiny.model), Plan.parse("int4")
    first = r"model\.layers\.0\.mlp\.gate_proj"
    refused(tiny, layers, plan, rf"humming cannot hold {first}.* 4 more: .*export dense", has_transform=True)
    refused(tiny, layers, plan, rf"{first}: 40 inputs are no multiple of 32", shape=(64, 40))
    refused(tiny, layers, plan, rf"{first}: groups of 8 are narrower than 16", group_size=8)
    experts = {name.replace("mlp.", "mlp.experts.3."): layer for name, layer in layers.items()}
    refused(tiny, experts, plan, r"experts\.3\.gate_proj.*all experts in one tensor; export dense")
    widths = {name: Slice(2 if "up_proj" in name else 4) for name in layers}
    refused(
        tiny,
        layers,
        Plan("uneven", layers=tuple(widths.items())),
        r"gate_proj int4, .*up_proj int2; .* keeps them together",
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: Humming's kernels cannot run")
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_library_reads_and_multiplies_what_is_written(bits, dtype):
    """Beside its own unpacking, and its product beside that of expanded weights, within half precision."""
    pytest.importorskip("humming.layer", reason="pip install humming-kernels")
    from humming.layer import HummingLayer
    from humming.schema import HummingWeightSchema
    from humming.tune import get_heuristics_config

    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (256, 512), generator=random, dtype=torch.uint8)
    grid = minmax_grid(torch.randn(256, 512, generator=random), bits, GridSpec(group_size=64))
    weight = SlicedWeight(codes, type(grid)(*(part.to(dtype).float() for part in grid)), Slice(bits))
    tensors = {name: tensor.cuda() for name, tensor in tensors_of(weight, dtype).items()}
    schema = schema_of(bits, 64)
    read = HummingWeightSchema.from_config(schema).dequant_tensors(tensors)
    assert torch.equal(read.cpu(), weight.affine().weight)
    layer = HummingLayer(shape_n=256, shape_k=512, weight_config=schema, torch_dtype=dtype).cuda()
    layer.load_from_tensors(tensors)
    layer.transform()
    x = torch.randn(16, 512, generator=random).to(dtype).cuda()
    expected = x.float() @ weight.affine().weight.cuda().t()
    # By itself the library compiles kernels for 84 ranges of batch sizes, and this test needs one.
    tuning = get_heuristics_config(layer.humming_config, shape_m=len(x))
    assert (layer(x, tuning_config=tuning).float() - expected).norm() < 4 * torch.finfo(dtype).eps * expected.norm()
