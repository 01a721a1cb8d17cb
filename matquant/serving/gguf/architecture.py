"""Architectures as llama.cpp spells them: names of tensors, the facts of a configuration, and two conventions.

llama.cpp rotates neighbouring pairs of a head where transformers rotates its halves, so the rows of q and k of Llama
and Mistral are put in another order.  Gemma's norms multiply by 1 + w in transformers, and 1 + w is what is stored.
Facts: convert_hf_to_gguf.py and src/models of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from matquant.errors import UserError
from matquant.models.gguf_model import BLOCKS_27B


@dataclass(frozen=True)
class Architecture:
    """A family of models, as llama.cpp computes it."""

    name: str
    activation: str = "silu"
    permutes: bool = False
    """The rows of q and k lie in the order of neighbouring pairs."""
    adds_one: bool = False
    """Norms are stored with 1 added."""
    period: int | None = None
    """Every so many blocks, one attends to everything and not to a window."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", permutes=True),
    "mistral": Architecture("llama", permutes=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", "gelu_pytorch_tanh", adds_one=True),
    "gemma2": Architecture("gemma2", "gelu_pytorch_tanh", adds_one=True, period=2),
    "gemma3_text": Architecture("gemma3", "gelu_pytorch_tanh", adds_one=True, period=6),
}
"""By the `model_type` of transformers."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model; UserError for one that llama.cpp computes in another way, or not at all."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise UserError(
            f"gguf: models of type {kind} are not written here, those of {', '.join(ARCHITECTURES)} are; export dense, "
            "and convert that folder with llama.cpp's convert_hf_to_gguf.py"
        )
    found = ARCHITECTURES[kind]
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != found.activation:
        raise _other(kind, f"the activation {found.activation}, and this model has {activation}")
    scaling = _rope(config).get("rope_type", "default")
    if scaling not in ("default", "linear", *(("llama3",) if found.name == "llama" else ())):
        raise _other(kind, f"rotary embeddings that are plain, and this model scales them ({scaling})")
    if (share := _rope(config).get("partial_rotary_factor") or 1) != 1:
        raise _other(kind, f"heads that are rotated whole, and this model has partial_rotary_factor={share:g}")
    if found.period is not None:
        _check_gemma(config, found)
    return found


def _check_gemma(config: Any, found: Architecture) -> None:
    """Refuses a layout of windows, or a scale of attention, that llama.cpp does not read from the file."""
    assert found.period is not None
    expected = [
        "full_attention" if (index + 1) % found.period == 0 else "sliding_attention"
        for index in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != expected:
        raise _other(config.model_type, f"a window in all blocks but every {found.period}th, and this model differs")
    of_head = config.hidden_size / config.num_attention_heads
    scalar = of_head if config.num_hidden_layers == BLOCKS_27B.get(config.model_type) else config.head_dim
    if config.query_pre_attn_scalar != scalar:
        raise _other(
            config.model_type, f"query_pre_attn_scalar={scalar:g}, and this model has {config.query_pre_attn_scalar}"
        )
    caps = [config.attn_logit_softcapping, config.final_logit_softcapping]
    if found.name == "gemma3" and any(caps):
        raise _other(config.model_type, "no soft caps, and this model has them")
    if found.name == "gemma2" and not all(caps):
        raise _other(config.model_type, "soft caps of attention and of logits, and this model lacks one")


def _other(kind: str, expects: str) -> UserError:
    return UserError(f"gguf: for {kind}, llama.cpp expects {expects}; export dense instead")


def _rope(config: Any) -> Mapping[str, Any]:
    """The settings of rotary embeddings; those of full attention where a window has its own."""
    settings = config.rope_parameters
    return settings.get("full_attention", settings)


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def facts_of(config: Any) -> dict[str, int | float | str]:
    """The facts of a configuration under llama.cpp's keys, without the architecture before them."""
    found, rope = architecture_of(config), _rope(config)
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    facts: dict[str, int | float | str] = {
        # Without a period, llama.cpp lets every block attend to everything: the same, up to the length of a window.
        "context_length": config.max_position_embeddings
        if found.period
        else min(window, config.max_position_embeddings),
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim(config),
        "attention.value_length": head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if found.name == "llama":
        facts["rope.dimension_count"] = head_dim(config)
    if found.period is not None:
        facts["attention.sliding_window"] = window
    if found.name == "gemma2":
        facts["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        facts["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if found.name == "gemma3":
        facts["rope.freq_base_swa"] = float(config.rope_parameters["sliding_attention"]["rope_theta"])
    if rope.get("rope_type") == "linear":
        facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return facts


def tensors_of(model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor]]:
    """The name in the file, the name in the model and the values of every tensor, as llama.cpp expects them.

    Rows are not put in order yet (`row_order`), so that quantized layers can take part in it.
    """
    import gguf

    config = model.config
    found = architecture_of(config)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == found.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise UserError(f"gguf: llama.cpp has no tensor for {name} of {config.model_type}; export dense instead")
        yield written, name, values.float() + 1 if found.adds_one and name.endswith("norm.weight") else values
    if _rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", "", _rope_factors(model)


def _rope_factors(model: PreTrainedModel) -> Tensor:
    """The factor by which the rotary embeddings of Llama 3.1 turn slower than plain ones, by frequency."""
    dim, base = head_dim(model.config), float(_rope(model.config)["rope_theta"])
    plain = base ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    rotary = next(module for module in model.modules() if hasattr(module, "inv_freq"))
    return plain / rotary.get_buffer("inv_freq").float()


def row_order(config: Any, name: str) -> Tensor | None:
    """The order in which the rows of a tensor are stored, if it is another than the model's."""
    layer = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer)
    if heads is None or not architecture_of(config).permutes:
        return None
    rows = torch.arange(heads * head_dim(config))
    return rows.view(heads, 2, -1).transpose(1, 2).reshape(-1)
