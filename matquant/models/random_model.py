"""Models with random weights and a tokenizer of bytes: they need no file, for tests and smoke runs."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from matquant.config.cell import RandomModel
from matquant.errors import UserError


def random_config(spec: RandomModel) -> transformers.PretrainedConfig:
    try:
        kind = transformers.CONFIG_MAPPING[spec.architecture]
    except KeyError as error:
        raise UserError(
            f"model.architecture={spec.architecture} is not one that transformers knows; try llama"
        ) from error
    return kind(**{"vocab_size": len(byte_tokenizer()), **spec.config})


def random_model(spec: RandomModel, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        return AutoModelForCausalLM.from_config(random_config(spec)).to(dtype)


def byte_tokenizer(*, sets_bos: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer of 256 bytes and one special token, which ends texts and may begin them; needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if sets_bos:
        begin = ("<eos>", vocabulary["<eos>"])
        tokenizer.post_processor = processors.TemplateProcessing(single="<eos> $A", special_tokens=[begin])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>"
    )
    wrapped.model_max_length = 2048
    return wrapped
