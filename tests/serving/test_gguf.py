"""GGUF files: read back by the gguf library and by transformers, they are what the checkpoint reads."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize as gguf_dequantize
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from matquant.codes.layouts import slices_of
from matquant.codes.nested import materialize, nest
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.codes.sliced import sliced
from matquant.command import main as command
from matquant.config.cell import EmbeddedModel, GridSpec
from matquant.errors import UserError
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.random_model import byte_tokenizer
from matquant.notation import Plan, Slice
from matquant.runs.tracking import NoTracker
from matquant.serving.engines.formats import Exactness, LayerShape, Source
from matquant.serving.export import shapes_of
from matquant.serving.gguf import file as gguf_file
from matquant.serving.gguf.architecture import facts_of, row_order, tensors_of
from matquant.serving.gguf.blocks import KINDS, held_in, kind_of, pack
from matquant.serving.gguf.file import FILE, Gguf
from matquant.serving.gguf.tokenizer import SPLITS, tokens_of
from matquant.training.train import train
from tests.tiny import tiny_overrides

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
    [
        *((width, "Q4_0") for width in ("int2", "int4", "int3+ep")),
        *((width, "Q5_0") for width in ("int4+ep", "int5")),
        *((width, "Q8_0") for width in ("int6", "int7", "int8")),
    ],
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


def test_blocks_of_the_file_that_a_model_came_from_are_kept_where_the_model_has_them_still(tmp_path, monkeypatch):
    plan = Plan.parse("int4")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    source, layers = source_of(tiny_model("llama"), plan)
    Gguf().write(first, source, source.read)
    model = held_model(source, layers)
    before = GGUFReader(first / FILE)
    kept = {tensor.name: tensor for tensor in before.tensors}
    query = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():  # as a reader of the file has it: d * k + m
        rows = gguf_dequantize(kept["blk.0.attn_q.weight"].data, GGMLQuantizationType.Q4_1)
        model.get_submodule(query).weight[row_order(model.config, f"{query}.weight")] = torch.from_numpy(rows)
    monkeypatch.setattr(gguf_file, "whole_file", lambda spec, beside: nullcontext(first / FILE))
    spec = EmbeddedModel(kind="embedded", name="tiny", package="a", version="1", file="b", dtype="float32")
    again = replace(source_of(model, plan, scope="ffn")[0], origin=spec)
    Gguf().write(second, again, again.read)
    after = GGUFReader(second / FILE)
    types = {tensor.name: tensor.tensor_type.name for tensor in after.tensors}
    assert types["blk.0.attn_q.weight"] == "Q4_1"
    assert types["blk.0.attn_norm.weight"] == types["output.weight"] == "F32"
    (written,) = (tensor.data for tensor in after.tensors if tensor.name == "blk.0.attn_q.weight")
    assert np.array_equal(written, kept["blk.0.attn_q.weight"].data)
    fields = [
        {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        for reader in (before, after)
    ]
    assert fields[0] == fields[1]


# --- what is refused ---


def shape(part: str, *, group_size: int | None = 32, has_transform: bool = False) -> LayerShape:
    return LayerShape(Slice.parse(part), (8, 64), group_size, False, has_transform)


@pytest.mark.parametrize(
    ("part", "facts", "words"),
    [
        ("int8", {}, r"cannot hold a\.b: .*signed integers.*int5, int4 or narrower, or export humming, hqq or dense"),
        ("int6", {}, "signed integers"),
        ("int5+ep", {}, "signed integers"),
        ("int4", {"group_size": 16}, r"a\.b: a block has 32 codes.*grid=group_32"),
        ("int4", {"has_transform": True}, r"a\.b: base\.transformation.*base\.transformation=false"),
    ],
)
def test_layers_that_no_block_holds_are_refused_by_name(part, facts, words):
    read = sliced(layer(GridSpec(group_size=32), columns=64), Slice.parse(part))
    source = Source(
        tiny_model("llama"), byte_tokenizer(), Plan.parse("int4"), {"a.b": shape(part, **facts)}, lambda name: read
    )
    with pytest.raises(UserError, match=words):
        Gguf().refuse(source)


YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("gpt2", {}, "models of type gpt2 are not written here, those of llama, mistral"),
        ("llama", {"hidden_act": "gelu"}, "expects the activation silu, and this model has gelu"),
        ("gemma2", {"query_pre_attn_scalar": 8}, "expects query_pre_attn_scalar=16, and this model has 8"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6}, "every 6th"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "no soft caps"),
        ("qwen3", {"rope_parameters": YARN}, "scales them .yarn."),
    ],
)
def test_models_that_llama_cpp_computes_in_another_way_are_refused(kind, settings, words):
    facts = {} if kind == "gpt2" else {**SIZES, **FAMILIES[kind]}
    with pytest.raises(UserError, match=words) as refused:
        facts_of(AutoConfig.for_model(kind, **{**facts, **settings}))
    assert "export dense" in str(refused.value)


def test_the_frequencies_of_llama_3_are_a_tensor_and_plain_ones_are_none():
    scaling = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    tensors = {name: values for name, _, values in tensors_of(tiny_model("llama", rope_parameters=scaling))}
    factors = tensors["rope_freqs.weight"]
    assert factors[0] == pytest.approx(1)  # the fastest turn as they did
    assert factors[-1] == pytest.approx(8)  # the slowest by the factor
    assert "rope_freqs.weight" not in {name for name, _, _ in tensors_of(tiny_model("llama"))}


# --- tokenizers ---

TEXTS = ("the then\n\n  12345 it's", " héllo\tthe", "<eos>the", "")


def byte_level(*steps) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with two merges, which cuts text by steps of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "th", "the", "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def by_expression(expression: str) -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    return byte_level(split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


def of_characters(*, prepends: bool) -> PreTrainedTokenizerFast:
    """A tokenizer as sentencepiece's are converted: spaces are a character, and what is unknown is bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁the", "th", "the", "▁the"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("▁")] * prepends + [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_the_way_of_cutting_text_is_recognized_by_its_rules():
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokens_of(byte_tokenizer(), 257).pre == "gpt-2"
    assert tokens_of(byte_level(plain), 300).pre == "gpt-2"
    assert tokens_of(byte_level(pre_tokenizers.Digits(individual_digits=True), plain), 300).pre == "smollm"
    for expression, name in SPLITS.items():
        assert tokens_of(by_expression(expression), 300).pre == name
    with pytest.raises(UserError, match=r"\(Split, ByteLevel\) is not known here; export dense"):
        tokens_of(by_expression(r"\s+"), 300)


def test_a_vocabulary_fills_the_embeddings_and_says_what_each_token_is():
    found = tokens_of(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)), 262)
    assert found.tokens[256:] == ["th", "the", "<eos>", "[PAD259]", "[PAD260]", "[PAD261]"]
    assert list(found.types[255:]) == [1, 1, 1, 3, 5, 5, 5]
    assert found.merges == ["t h", "th e"]
    with pytest.raises(UserError, match="259 tokens and the model 100 embeddings"):
        tokens_of(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)), 100)


@pytest.mark.parametrize("prepends", [False, True])
def test_ranks_of_merges_are_scores_and_make_the_same_tokens(prepends, tmp_path):
    tokenizer = of_characters(prepends=prepends)
    size = len(tokenizer)
    found = tokens_of(tokenizer, size)
    assert found.add_space_prefix == prepends
    assert (found.types[0], found.types[1], found.types[3]) == (2, 3, 6)
    assert found.scores is not None
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert scores["th"] > scores["the"] > scores["▁the"] > scores["t"] == scores["<s>"]
    source, _ = source_of(tiny_model("llama", vocab_size=size), Plan.parse("int4"), tokenizer=tokenizer)
    Gguf().write(tmp_path, source, source.read)
    assert read_field(tmp_path, "tokenizer.ggml.model") == "llama"
    assert read_field(tmp_path, "tokenizer.ggml.add_space_prefix") is prepends


@pytest.mark.parametrize("begins", [False, True])
def test_transformers_reads_the_same_tokenizer_out_of_the_file(begins, tmp_path):
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    if begins:
        tokenizer.bos_token = "<eos>"
        template = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 258)])
        tokenizer.backend_tokenizer.post_processor = template
    source, _ = source_of(tiny_model("llama", vocab_size=259), Plan.parse("int4"), tokenizer=tokenizer)
    Gguf().write(tmp_path, source, source.read)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=FILE)
    for text in TEXTS:
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours
    assert read_field(tmp_path, "tokenizer.ggml.add_bos_token") is begins


def read_field(folder: Path, key: str):
    return GGUFReader(folder / FILE).fields[key].contents()


# --- the command ---


def test_the_command_writes_a_file_and_says_what_narrow_widths_save_nothing_of(tiny_study, tmp_path, capsys):
    study = tiny_study("base=minmax", "bits=int8")
    train(study.one_cell(), study.setup, NoTracker())
    overrides = [*tiny_overrides(tmp_path), "base=minmax", "bits=int8"]
    assert not command(["export", "gguf", *overrides, "int2", str(tmp_path / "int2")])
    said = capsys.readouterr().out
    assert "as gguf, exact up to float16 scales" in said
    assert "int2 layers take as much as int4 ones" in said
    record = json.loads((tmp_path / "int2" / "export.json").read_text())
    assert record["exactness"] == "exact up to float16 scales"
    assert len(record["notes"]) == 1
    assert not command(["export", "gguf", *overrides, "int4", str(tmp_path / "int4")])
    sizes = [(tmp_path / width / FILE).stat().st_size for width in ("int2", "int4")]
    assert sizes[0] == sizes[1]
    assert json.loads((tmp_path / "int4" / "export.json").read_text())["notes"] == []
    assert command(["export", "gguf", *overrides, "int8", str(tmp_path / "int8")]) == 2
    assert "choose int5, int4 or narrower" in capsys.readouterr().err
    assert not (tmp_path / "int8").exists()
