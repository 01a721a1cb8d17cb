"""Tiny models of the families that are written as GGUF, each with what is particular to it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from matquant.codes.nested import nest
from matquant.codes.quantizers import minmax_grid
from matquant.codes.sliced import sliced
from matquant.config.cell import GridSpec
from matquant.models.layers.families import block_name, blocks, linears
from matquant.notation import Plan, Slice
from matquant.serving.engines.formats import Source
from matquant.serving.export import shapes_of
from matquant.serving.gguf.file import Gguf

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "vocab_size": 260,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama, biases and a wide head": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 64}),
    "llama 3.1's frequencies": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear frequencies": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
}
WIDTHS = tuple(map(Slice.parse, ("int4", "int3", "int2+ep", "int4+ep", "int2")))
"""The slices that layers are read at, in turn."""


def write_family(name: str, folder: Path) -> PreTrainedModel:
    """Writes a tiny model as GGUF, and returns it with the weights that the file holds."""
    kind, settings = FAMILIES[name]
    model = tiny_model(kind, **settings)
    layers = {
        f"{block_name(model, index)}.{path}": nest(
            linear.weight, minmax_grid(linear.weight, 8, GridSpec(group_size=64)), 8
        )
        for index, block in enumerate(blocks(model))
        for path, linear in linears(block, "ffn_attention").items()
    }
    parts = dict(zip(layers, cycle(WIDTHS), strict=False))
    plan = Plan("mixed", layers=tuple(parts.items()))
    source = Source(
        model, merging_tokenizer(), plan, shapes_of(layers, plan), lambda path: sliced(layers[path], parts[path])
    )
    Gguf().refuse(source)
    Gguf().write(folder, source, lambda path: Gguf().hold(path, source.read(path)))
    with torch.no_grad():
        for path in layers:
            held = Gguf().hold(path, source.read(path))
            model.get_submodule(path).get_parameter("weight").copy_(held.affine().weight)
    return model


def tiny_model(kind: str, **settings: Any) -> PreTrainedModel:
    """A model of random weights, norms and biases among them, that tells its tokens apart."""
    facts = {key: value for key, value in {**SIZES, **settings}.items() if value is not None or key == "sliding_window"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **facts)).eval()
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in name and "gemma" not in kind), std=0.1)
    return model


def merging_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of bytes with a few merges: llama.cpp wants at least one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "th", "the", "<eos>"]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>")
