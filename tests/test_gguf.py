"""GGUF files: read back by the gguf library and by transformers, they are what the checkpoint reads."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from transformers import AutoConfig, AutoModelForCausalLM

from matquant.codes.layouts import slices_of
from matquant.codes.nested import materialize, nest
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.codes.sliced import sliced
from matquant.config.cell import GridSpec
from matquant.errors import UserError
from matquant.models.families import block_name, blocks, linears
from matquant.models.random_model import byte_tokenizer
from matquant.notation import Plan, Slice
from matquant.serving.export import shapes_of
from matquant.serving.formats import Exactness, Source
from matquant.serving.gguf_blocks import KINDS, held_in, kind_of, pack
from matquant.serving.gguf_file import FILE, Gguf

WIDTHS = ("int2", "int3", "int4", "int2+ep", "int3+ep", "int4+ep", "int5")
ALIGNED = {"asymmetric": GridSpec(group_size=32), "symmetric": GridSpec(group_size=32, symmetric=True)}


def layer(spec: GridSpec, *, columns: int = 128, rows: int = 6):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.05
    return nest(weight, minmax_grid(weight, 8, spec), 8)


def read_back(name: str, blocks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf_dequantize(blocks, GGMLQuantizationType[name]))


@pytest.mark.parametrize("group_size", [32, 64, None])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_librarys_own_dequantize_reads_what_the_format_holds(width, group_size):
    weight = sliced(layer(GridSpec(group_size=group_size)), Slice.parse(width))
    kind = kind_of(weight)
    assert kind is not None
    assert kind.name == ("Q5_1" if width in ("int4+ep", "int5") else "Q4_1")
    held = held_in("layer", weight, kind)
    ours = held.affine().weight
    # d * k + m against d * (k - z) with z = -m / d: one rounding in float32 more, of numbers as large as d * k.
    assert (read_back(kind.name, pack("layer", weight, kind)) - ours).abs().max() <= 2.0**-22 * ours.abs().max() * 4
    exactness = Exactness(Gguf().scale_dtype)
    exactness.add(weight, held)
    assert str(exactness) == "exact up to float16 scales"
    assert exactness.relative_error < 2e-3


@pytest.mark.parametrize(
    ("width", "name"),
    [("int2", "Q4_0"), ("int4", "Q4_0"), ("int3+ep", "Q4_0"), ("int4+ep", "Q5_0"), ("int5", "Q5_0")]
    + [("int6", "Q8_0"), ("int7", "Q8_0"), ("int8", "Q8_0")],
)
def test_symmetric_slices_need_no_minimum_and_are_held_to_the_last_bit_of_their_rounded_scales(width, name):
    weight = sliced(layer(GridSpec(group_size=64, symmetric=True)), Slice.parse(width))
    kind = kind_of(weight)
    assert kind is not None
    assert kind.name == name
    held = held_in("layer", weight, kind)
    assert torch.equal(read_back(name, pack("layer", weight, kind)), held.affine().weight)
    assert torch.equal(held.grid.scale, weight.grid.scale.half().float())
    assert torch.equal(held.grid.zero, weight.grid.zero)


def test_a_kind_of_block_is_taken_only_if_every_code_has_a_place_in_it():
    for kind in KINDS:
        for part in (Slice(bits, extra) for bits in range(1, 9) for extra in (False, True)):
            for zero in range(256):
                if kind.holds(part, torch.full((1, 1), float(zero))):
                    top = (1 << part.bits) - 1 + part.extra_precision
                    moved = 0 if kind.zero is None else kind.zero - zero
                    assert moved >= 0
                    assert top + moved < 1 << kind.bits


def test_groups_of_nothing_and_of_next_to_nothing_are_held():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1, :32], weight[2] = 0.0, 0.25, 1e-9 * weight[2]
    read = sliced(nest(weight, minmax_grid(weight, 8, GridSpec(group_size=32)), 8), Slice(4))
    kind = kind_of(read)
    assert kind is not None
    held = held_in("layer", read, kind)
    back = read_back(kind.name, pack("layer", read, kind))
    assert torch.allclose(back, held.affine().weight, atol=1e-6)
    assert torch.allclose(back, read.affine().weight, rtol=2e-3, atol=1e-3)
    exactness = Exactness(torch.float16)
    exactness.add(read, held)
    assert exactness.is_scales_alone


def test_scales_beyond_float16_are_refused_by_name():
    weight = sliced(layer(GridSpec(group_size=32)), Slice(4))
    huge = weight._replace(grid=Grid(weight.grid.scale * 1e9, weight.grid.zero))
    with pytest.raises(UserError, match=r"one of a\.b is .*export dense"):
        held_in("a.b", huge, KINDS[1])


# --- whole models ---

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "vocab_size": 257,
}
GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 8, "tie_word_embeddings": True}
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 128},  # transformers reads its default from a file
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
}


def tiny_model(kind: str, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = AutoConfig.for_model(kind, **{**SIZES, **FAMILIES.get(kind, {}), **settings})
        model = AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def source_of(model, plan: Plan, *, scope="ffn_attention", grid=ALIGNED["asymmetric"], tokenizer=None) -> Source:
    layers = {
        f"{block_name(model, index)}.{name}": nest(linear.weight, minmax_grid(linear.weight, 8, grid), 8)
        for index, block in enumerate(blocks(model))
        for name, linear in linears(block, scope).items()
    }
    parts = slices_of(plan, layers)
    return Source(
        model,
        tokenizer or byte_tokenizer(),
        plan,
        shapes_of(layers, plan),
        lambda name: sliced(layers[name], parts[name]),
    ), layers


@torch.no_grad()
def held_model(source: Source, layers):
    materialize(source.model, layers, source.plan)
    for name in source.shapes:
        source.model.get_submodule(name).weight.copy_(Gguf().hold(name, source.read(name)).affine().weight)
    return source.model


FACTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


@pytest.mark.parametrize(
    ("kind", "plan"), [*((kind, "int4") for kind in FAMILIES), ("llama", "pyramid@3"), ("gemma3_text", "int2+ep")]
)
def test_transformers_reads_the_model_that_the_format_holds(kind, plan, tmp_path):
    source, layers = source_of(tiny_model(kind), Plan.parse(plan))
    Gguf().refuse(source)
    Gguf().write(tmp_path, source, lambda name: Gguf().hold(name, source.read(name)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, dtype=torch.float32).eval()
    ours = held_model(source, layers)
    for fact in (*FACTS, "head_dim", "rms_norm_eps", "vocab_size", "tie_word_embeddings"):
        if hasattr(theirs.config, fact):
            assert getattr(theirs.config, fact) == pytest.approx(getattr(ours.config, fact)), fact
    # transformers has no field of the file for Gemma's scale of attention: its weights, in a model of our settings.
    read = type(ours)(ours.config).eval()
    read.load_state_dict(theirs.state_dict())
    tokens = torch.arange(7, 27)[None]
    assert (read(tokens).logits - ours(tokens).logits).abs().max() < 1e-6
