"""Models and tokenizers of real shapes that need no file: random weights, and a tokenizer whose tokens are words."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.gpu.lines import Scale

LLAMA_3_2_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LLAMA_3_1_8B = {
    **LLAMA_3_2_1B,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "tie_word_embeddings": False,
}
TINY = {
    **LLAMA_3_2_1B,
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
NUM_WORDS = 200
"""The words of the tokenizer: few, so that a tiny model has a token for each."""


def model_of(shapes: dict[str, Any], scale: Scale, dtype: torch.dtype, *, seed: int = 0) -> PreTrainedModel:
    """A Llama with random weights, made on the device itself."""
    with torch.random.fork_rng(devices=[scale.device] if scale.device.type == "cuda" else []), scale.device:
        torch.manual_seed(seed)
        opened: Any = AutoModelForCausalLM
        config = LlamaConfig(**shapes, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
        return opened.from_config(config, dtype=dtype).eval()


def word_tokenizer(num_words: int = NUM_WORDS) -> PreTrainedTokenizerBase:
    """A tokenizer of the words w0, w1, ... and of one special token, which ends texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<eos>": 0, **{f"w{number}": number + 1 for number in range(num_words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>", unk_token="<eos>"
    )
    wrapped.model_max_length = 2048
    return wrapped
