"""The shapes of the hub's models that conf/model names, for the plan of a study whose models are not here yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matquant.config.cell import HubModel, ModelSpec, RandomModel


def _shape(
    architecture: str, vocabulary: int, hidden: int, inner: int, layers: int, heads: int, key_heads: int, **more: Any
) -> tuple[str, Mapping[str, Any]]:
    return architecture, {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        **more,
    }


SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "google/gemma-2-2b": _shape("gemma2", 256_000, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True),
    "google/gemma-2-9b": _shape("gemma2", 256_000, 3584, 14_336, 42, 16, 8, head_dim=256, tie_word_embeddings=True),
    "meta-llama/Llama-3.1-8B": _shape("llama", 128_256, 4096, 14_336, 32, 32, 8),
    "meta-llama/Llama-3.2-1B": _shape("llama", 128_256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True),
    "meta-llama/Llama-3.1-8B-Instruct": _shape("llama", 128_256, 4096, 14_336, 32, 32, 8),
    "meta-llama/Llama-3.2-1B-Instruct": _shape(
        "llama", 128_256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True
    ),
    "mistralai/Mistral-7B-v0.1": _shape("mistral", 32_000, 4096, 14_336, 32, 32, 8),
    "microsoft/Phi-3-mini-4k-instruct": _shape("phi3", 32_064, 3072, 8192, 32, 32, 32, pad_token_id=32_000),
    "Qwen/Qwen3-0.6B-Base": _shape("qwen3", 151_936, 1024, 3072, 28, 16, 8, head_dim=128, tie_word_embeddings=True),
    "Qwen/Qwen3-8B": _shape("qwen3", 151_936, 4096, 12_288, 36, 32, 8, head_dim=128),
    "HuggingFaceTB/SmolLM2-135M": _shape("llama", 49_152, 576, 1536, 30, 9, 3, tie_word_embeddings=True),
}
"""As the config.json of each repository says."""


def stand_in(model: ModelSpec) -> RandomModel | None:
    """A model of the same shape as one of the hub; None for one whose shape is not known here."""
    if not isinstance(model, HubModel) or model.repo not in SHAPES:
        return None
    architecture, config = SHAPES[model.repo]
    return RandomModel(kind="random", name=model.name, architecture=architecture, config=dict(config))
