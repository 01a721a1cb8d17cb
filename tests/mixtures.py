"""Tiny mixtures of experts, by architecture: settings beside the sizes of conf/model/tiny.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "qwen3_moe": {**FOUR, "head_dim": 8},
    "mixtral": LOCAL,
    "qwen2_moe": {**FOUR, "shared_expert_intermediate_size": 32},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 0},
    "deepseek_v3": {**LATENT, "n_group": 2, "topk_group": 1},  # its first block is dense
    # Stored [inputs, outputs], with biases; gate and up alternate.
    "gpt_oss": {**LOCAL, "head_dim": 8, "eos_token_id": 0},
    # Rows sorted by expert instead of a choice for each token.
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64, "head_dim": 8}
    | {"pad_token_id": 0},
    "granitemoe": LOCAL,
}
