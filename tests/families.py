"""A tiny random model of every supported family, and of the variants that differ in structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from matquant.config.cell import RandomModel
from matquant.models.layers.families import FAMILIES
from matquant.models.loading import LoadedModel, load_model

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bias": False}
GEMMA3 = {**LLAMA, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
OPT = {**LLAMA, "ffn_dim": 64, "word_embed_proj_dim": 32}


class Tiny(NamedTuple):
    """An architecture of transformers, and the folder of its classes where it has another name."""

    architecture: str
    config: dict[str, Any]
    family: str = ""


def llama(architecture: str, **config: Any) -> Tiny:
    return Tiny(architecture, {**LLAMA, **config})


MODELS: dict[str, Tiny] = {
    **{name: llama(name) for name in ("llama", "olmo", "olmo2", "arcee", "persimmon")},
    "qwen2": llama("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "starcoder2": llama("starcoder2", sliding_window=6),
    "mistral": llama("mistral", sliding_window=6),
    "helium": llama("helium", head_dim=8),
    "qwen3": llama("qwen3", head_dim=8),
    "gemma": llama("gemma", head_dim=8),
    "gemma2": llama("gemma2", head_dim=8, sliding_window=6, query_pre_attn_scalar=8, final_logit_softcapping=2.0),
    "gemma3": Tiny("gemma3_text", GEMMA3, "gemma3"),
    "gemma3 with images": Tiny(
        "gemma3",
        {
            "text_config": {**GEMMA3, "vocab_size": 257},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 256,
        },
        "gemma3",
    ),
    "phi": llama("phi", partial_rotary_factor=0.5),
    "phi3": llama("phi3", pad_token_id=0, sliding_window=6),
    "stablelm": llama("stablelm", use_parallel_residual=False),
    "stablelm in parallel": Tiny("stablelm", {**LLAMA, "use_parallel_residual": True}),
    "granite": llama("granite", embedding_multiplier=2.0, logits_scaling=3.0, residual_multiplier=0.5),
    "olmo3": llama("olmo3", sliding_window=6),
    "smollm3": llama("smollm3", pad_token_id=0),
    "cohere": llama("cohere", logit_scale=0.25, pad_token_id=0),
    "cohere2": llama("cohere2", logit_scale=0.25, pad_token_id=0, sliding_window=6, sliding_window_pattern=2),
    "glm": llama("glm", head_dim=8, pad_token_id=0),
    "glm4": llama("glm4", head_dim=8, pad_token_id=0),
    "nemotron": llama("nemotron"),
    "exaone4": llama("exaone4", sliding_window=6, sliding_window_pattern=2),
    "ministral": llama("ministral", head_dim=8, sliding_window=6),
    "seed_oss": llama("seed_oss", head_dim=8),
    "opt": Tiny("opt", OPT),
    "opt after its norm": Tiny("opt", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "xglm": Tiny("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}),
    "biogpt": Tiny("biogpt", LLAMA),
    "gpt2": Tiny("gpt2", GPT),
    "gpt_bigcode": Tiny("gpt_bigcode", GPT),
    "gpt_neox": Tiny("gpt_neox", LLAMA),
    "gpt_neox one after the other": Tiny("gpt_neox", {**LLAMA, "use_parallel_residual": False}),
    "gptj": Tiny("gptj", {**GPT, "rotary_dim": 4}),
    "codegen": Tiny("codegen", {**GPT, "rotary_dim": 4, "n_ctx": 64}),
    "gpt_neo": Tiny(
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "window_size": 6,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "bloom": Tiny("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": Tiny("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "falcon": Tiny("falcon", FALCON),
    "falcon of 40B": Tiny("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon with alibi": Tiny("falcon", {**FALCON, "alibi": True, "parallel_attn": False, "multi_query": False}),
    "gemma4": Tiny(
        "gemma4_text",
        {
            **LLAMA,
            "head_dim": 8,
            "global_head_dim": 8,
            "sliding_window": 6,
            "vocab_size_per_layer_input": 257,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "gemma4",
    ),
    "gemma3n": Tiny(
        "gemma3n_text",
        {
            **LLAMA,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "sliding_window": 6,
            "vocab_size_per_layer_input": 257,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "gemma3n",
    ),
}


KNOWN_AS = {
    "codegen": "CodeGen",
    "deepseek_v3": "DeepSeek-V3, R1",
    "falcon": "Falcon 7B, 40B and RW",
    "gemma3": "Gemma-3, text alone or with images",
    "gemma3n": "Gemma-3n",
    "gemma4": "Gemma-4",
    "gpt2": "GPT-2, GPT-SW3",
    "gpt_bigcode": "StarCoder, SantaCoder",
    "gpt_neox": "Pythia, GPT-NeoX",
    "gptj": "GPT-J",
    "granitemoehybrid": "Granite 4",
    "llama": "Llama, SmolLM2, InternLM3",
    "mistral": "Mistral 7B",
    "phimoe": "Phi-3.5-MoE",
    "qwen3_next": "Qwen3-Next",
    "opt": "OPT, Galactica",
    "phi": "Phi-1, Phi-1.5, Phi-2",
    "phi3": "Phi-3, Phi-4",
    "qwen2": "Qwen2, Qwen2.5",
}
"""Models by which a family is better known than by its folder in transformers."""


def table() -> str:
    """The table of docs/models.md: families, bases, and whether answers share their question in evaluation."""
    rows = [
        "| family | models | none, minmax, search, qat | omniquant, gptq | answers share a row |",
        "|---|---|---|---|---|",
    ]
    for name, family in sorted(FAMILIES.items()):
        block_wise = "refused" if family.not_block_wise else "yes"
        shares = ("without alibi" if name == "falcon" else "yes") if family.shares_contexts else "no"
        rows.append(f"| `{name}` | {KNOWN_AS.get(name, '')} | yes | {block_wise} | {shares} |")
    return "\n".join(rows)


def spec_of(name: str, **config: Any) -> RandomModel:
    model = MODELS[name]
    return RandomModel(kind="random", name="tiny", architecture=model.architecture, config={**model.config, **config})


def loaded(name: str, dtype: str = "float32", **config: Any) -> LoadedModel:
    return load_model(spec_of(name, **config), cache=Path(), dtype=dtype, device=torch.device("cpu"))


def renew_documentation(page: Path = Path("docs/models.md")) -> None:
    """Writes the table into its page: python -m tests.families."""
    before, rest = page.read_text().split("| family |", maxsplit=1)
    after = rest.partition("|\n\n")[2]
    page.write_text(f"{before}{table()}\n\n{after}")


if __name__ == "__main__":
    renew_documentation()
