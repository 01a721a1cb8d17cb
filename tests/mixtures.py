"""A tiny random model of every supported family with experts, or with something else in the place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from matquant.config.cell import DType, RandomModel
from matquant.models.loading import LoadedModel, load_model
from tests.families import LLAMA, Tiny

FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
# The first block is dense.
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
IN_GROUPS = {**ROUTED, "n_group": 2, "topk_group": 1, "pad_token_id": 0}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
WIDE = {"initializer_range": 0.3, "max_position_embeddings": 2048}


def mixture(architecture: str, /, *settings: Mapping[str, Any], family: str = "", **config: Any) -> Tiny:
    sizes = {**LLAMA, **WIDE}
    for some in (*settings, config):
        sizes |= some
    return Tiny(architecture, sizes, family)


MIXTURES: dict[str, Tiny] = {
    "qwen3_moe": mixture("qwen3_moe", FOUR, moe_intermediate_size=32, head_dim=8),
    "mixtral": mixture("mixtral", LOCAL),
    "qwen2_moe": mixture("qwen2_moe", FOUR, moe_intermediate_size=32, shared_expert_intermediate_size=64),
    "olmoe": mixture("olmoe", FOUR, eos_token_id=0),
    "flex_olmo": mixture("flex_olmo", FOUR, eos_token_id=0, pad_token_id=0),
    "deepseek_v2": mixture("deepseek_v2", ROUTED, LATENT),
    "deepseek_v3": mixture("deepseek_v3", IN_GROUPS, LATENT),
    "glm4_moe": mixture("glm4_moe", IN_GROUPS, head_dim=8),
    "dots1": mixture("dots1", IN_GROUPS, n_shared_experts=1, head_dim=8),
    # Stored [inputs, outputs], with biases; gate and up alternate.
    "gpt_oss": mixture("gpt_oss", LOCAL, head_dim=8, eos_token_id=0),
    "phimoe": mixture("phimoe", LOCAL),
    "ernie4_5_moe": mixture("ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=32, pad_token_id=0),
    "hunyuan_v1_moe": mixture("hunyuan_v1_moe", num_experts=4, moe_topk=2, head_dim=8, pad_token_id=0, eos_token_id=0),
    # Rows sorted by expert instead of a choice for each token.
    "llama4": mixture(
        "llama4_text",
        family="llama4",
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=64,
        head_dim=8,
        pad_token_id=0,
    ),
    "granitemoe": mixture("granitemoe", LOCAL),
    "granitemoe_swa": mixture("granitemoe_swa", LOCAL, sliding_window=6, pad_token_id=0),
    "granitemoeshared": mixture("granitemoeshared", LOCAL, shared_intermediate_size=32),
    "granitemoehybrid": mixture(
        "granitemoehybrid",
        {**LOCAL, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
    ),
    "qwen3_next": mixture(
        "qwen3_next",
        {**FOUR, **LINEAR, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "head_dim": 8},
        layer_types=["linear_attention", "full_attention"],
    ),
    "qwen3_5": mixture(
        "qwen3_5_text", LINEAR, family="qwen3_5", head_dim=8, layer_types=["linear_attention", "full_attention"]
    ),
    "qwen3_5_moe": mixture(
        "qwen3_5_moe_text",
        {**FOUR, **LINEAR, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "head_dim": 8},
        family="qwen3_5_moe",
        layer_types=["linear_attention", "full_attention"],
    ),
    "jamba": mixture("jamba", FOUR, pad_token_id=0, attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=32),
    "lfm2": mixture("lfm2", layer_types=["conv", "full_attention"], pad_token_id=0),
    "lfm2_moe": mixture(
        "lfm2_moe", FOUR, moe_intermediate_size=32, num_dense_layers=1, layer_types=["conv", "full_attention"]
    ),
}


def spec_of(name: str) -> RandomModel:
    tiny = MIXTURES[name]
    return RandomModel(kind="random", name="tiny", architecture=tiny.architecture, config=tiny.config)


def loaded(name: str, dtype: DType = "float32") -> LoadedModel:
    return load_model(spec_of(name), cache=Path(), dtype=dtype, device=torch.device("cpu"))
