"""A GGUF file as a model of `transformers`: what its reader passes over in silence is settled here, or refused by name.

The reader has a map of tensors and one of settings for each architecture, and skips everything else: the factors of
Llama 3.1's rotary embeddings (`rope_freqs.weight`), biases of attention, `rope.scaling.*`, Gemma's scale of attention.
The model is then another one than the file's.  llama.cpp's own sources say what each setting means.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from math import inf, isclose
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from matquant.errors import UserError
from matquant.models.weight_files import counted, named
from matquant.stored.gguf_layers import ROPE_FACTORS, gguf_header

try:
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS as REPORTED
except ImportError:  # older versions of transformers read every architecture by maps
    REPORTED = {}

INSTEAD = "measure its unquantized model with base=none, or a file of it in another format"
BLOCKS_27B = {"gemma2": 46, "gemma3_text": 62}
"""Blocks of the size for which llama.cpp scales attention by the hidden size of a head."""
FACTORS_ARE_READ = ("llama", "mistral")
"""The models whose frequencies llama.cpp divides by the factors of the file."""
FULL = "full_attention"
ELSEWHERE = {
    *("context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.key_length", "attention.value_length", "expert_feed_forward_length"),
    *("expert_shared_feed_forward_length", "tensor_data_layout", "use_parallel_residual"),
}
"""Settings that the shapes and names of tensors tell too, so that another value would be refused there."""
EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
SAME: Mapping[str, tuple[str, ...]] = {
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.layer_norm_epsilon": EPSILONS,
    "attention.layer_norm_rms_epsilon": EPSILONS,
    "attention.sliding_window": ("sliding_window",),
}
"""Settings that the reader does not map for every architecture, with their names in configurations."""


def settle(config: PretrainedConfig, path: Path, title: str) -> None:
    """Gives the configuration of a GGUF file the settings that its reader passes over; UserError for one it cannot."""
    header = gguf_header(path)
    settings = {key: value for key, value in header.settings.items() if value}  # counts of 0, switches that are off
    _settle_rope(config, settings, title)
    if header.architecture in REPORTED:  # of these, transformers reads every setting
        return
    _settle_gemma(config, settings)
    if config.model_type == "phi3" and "attention.sliding_window" in settings:
        config.sliding_window = settings["attention.sliding_window"]
    mapped = GGUF_CONFIG_MAPPING.get(config.model_type.removesuffix("_text"), {})
    read = {key for key, name in mapped.items() if name is not None} | ELSEWHERE
    left = {key: value for key, value in settings.items() if key not in read and not _is_so(config, key, value)}
    if left:
        key, value = next(iter(left.items()))
        raise UserError(
            f"{title} says {header.architecture}.{key}={value}, which transformers' reader of GGUF passes over, so "
            f"that another model would be measured; {INSTEAD}"
        )


def _is_so(config: Any, key: str, value: Any) -> bool:
    """True if a configuration has a setting already, or if it makes no difference."""
    if key == "attention.sliding_window_pattern":
        slides = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
        period = [bool((index + 1) % value) for index in range(len(slides))] if isinstance(value, int) else value
        return [bool(one) for one in period] == slides
    if key == "attention.sliding_window" and value >= getattr(config, "max_position_embeddings", inf):
        return True
    found = [getattr(config, name, None) for name in SAME.get(key, ())]
    return any(isinstance(one, int | float) and isclose(one, value, rel_tol=1e-6) for one in found)


def _settle_gemma(config: Any, settings: Mapping[str, Any]) -> None:
    """Gemma's scale of attention, which llama.cpp tells by the size of the model, and its soft caps."""
    blocks = BLOCKS_27B.get(config.model_type)
    if blocks is None:
        return
    of_head = config.hidden_size // config.num_attention_heads
    config.query_pre_attn_scalar = of_head if config.num_hidden_layers == blocks else config.head_dim
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if cap in settings:
            setattr(config, cap, settings[cap])


# --- rotary embeddings -----------------------------------------------------------------------------------------------


def _settle_rope(config: Any, settings: MutableMapping[str, Any], title: str) -> None:
    """Takes the settings of rotary embeddings out of all, and into the configuration."""
    given = {key: settings.pop(key) for key in list(settings) if key.startswith("rope.")}
    if not given:
        return
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise _passed_over(title, given, "rotary embeddings, which its architecture has not in transformers")
    rope = parameters.get(FULL, parameters)
    rope["rope_theta"] = given.pop("rope.freq_base", rope.get("rope_theta"))
    if "sliding_attention" in parameters and (of_window := given.pop("rope.freq_base_swa", None)):
        parameters["sliding_attention"]["rope_theta"] = of_window
    _settle_scaling(rope, given, title)
    width = given.pop("rope.dimension_count", None)
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1
    if config.model_type != "minimax_m2" and width not in (None, turned := int(_head_dim(config) * share)):
        raise UserError(
            f"{title} turns {width} numbers of each head (rope.dimension_count), and transformers would turn {turned}; "
            f"{INSTEAD}"
        )
    given.pop("rope.dimension_sections", None)
    if given:
        raise _passed_over(title, given, "rotary embeddings in a way that is not read here")


def _settle_scaling(rope: MutableMapping[str, Any], given: MutableMapping[str, Any], title: str) -> None:
    """Linear scaling, which llama.cpp takes a factor without a kind for; UserError for others."""
    scaling = {key: given.pop(key) for key in list(given) if key.startswith(("rope.scaling.", "rope.scale_linear"))}
    factor = scaling.get("rope.scaling.factor", scaling.get("rope.scale_linear", 1.0))
    kind = scaling.get("rope.scaling.type", "linear")
    scales = scaling.get("rope.scaling.attn_factor", 1.0) != 1.0
    if kind not in ("none", "linear") or scales:
        raise _passed_over(title, scaling, "rotary embeddings that are scaled in a way that is not read here")
    if kind == "linear" and factor != 1.0:
        rope.update(rope_type="linear", factor=float(factor))


def _passed_over(title: str, given: Mapping[str, Any], what: str) -> UserError:
    said = ", ".join(f"{key}={value}" for key, value in given.items())
    return UserError(f"{title} has {what} ({said}); {INSTEAD}")


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@torch.no_grad()
def divide_frequencies(model: nn.Module, path: Path) -> None:
    """Divides the frequencies of a model's rotary embeddings by the factors in its file, as llama.cpp does."""
    factors = gguf_header(path).rope_factors
    if factors is None:
        return
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            if isinstance(frequencies := getattr(module, name, None), torch.Tensor):
                frequencies.div_(torch.tensor(factors, device=frequencies.device))


# --- tensors ---------------------------------------------------------------------------------------------------------


def require_placed(config: PretrainedConfig, path: Path, title: str, *, divides: bool = True) -> None:
    """Refuses a file with a tensor for which transformers' reader has no place, by the names alone.

    `divides`: the caller divides frequencies by the factors of the file (`divide_frequencies`).
    """
    header = gguf_header(path)
    if header.architecture in REPORTED:  # of these, the report of the loader names every tensor
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    known = {*places, *(f"{place}.weight" for place in places)}  # experts have a place without the ending
    if divides and header.rope_factors is not None and config.model_type in FACTORS_ARE_READ:
        width = _head_dim(config) // 2
        if len(header.rope_factors) != width:
            raise UserError(
                f"{ROPE_FACTORS} of {title} has {len(header.rope_factors)} factors for {width} frequencies; copy or "
                "download it again"
            )
        known.add(ROPE_FACTORS)
    if left := [name for name in header.tensors if name not in known]:
        raise UserError(
            f"{title} has {counted(left)} that transformers' reader of GGUF leaves out, so that another model would "
            f"be measured: {named(left)}; {INSTEAD}"
        )
