"""Models with random weights and a tokenizer of bytes: they need no file, for tests and smoke runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from matquant.config.cell import ModelSpec, RandomModel
from matquant.errors import UserError


def random_config(spec: RandomModel) -> transformers.PretrainedConfig:
    try:
        kind = transformers.CONFIG_MAPPING[spec.architecture]
    except KeyError as error:
        raise UserError(
            f"model.architecture={spec.architecture} is not one that transformers knows; try llama"
        ) from error
    if kind not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model.architecture={spec.architecture} is no causal language model; try llama")
    with buildable(spec):
        return kind(**{"vocab_size": len(byte_tokenizer()), **spec.config})


@contextmanager
def buildable(spec: ModelSpec) -> Iterator[None]:
    """Turns settings that no model can be built with, or a package that one needs, into one sentence."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        asked = re.search(r"`(pip install [^`]+)`", str(error))
        raise UserError(
            f"model {spec.name} needs a package that is not installed ({' '.join(str(error).split())[:100]}); "
            f"{asked[1] if asked else 'install it'}"
        ) from error
    except Exception as error:  # of any kind: settings that do not fit together fail wherever they are used
        place = "model.config" if isinstance(spec, RandomModel) else "its config.json"
        reason = (str(error).strip() or repr(error)).splitlines()[-1].strip()
        raise UserError(f"model {spec.name} cannot be built with its settings ({reason}); correct {place}") from error


def random_model(spec: RandomModel, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng([]):  # of the CPU alone: asking for those of all GPUs starts every one of them
        torch.default_generator.manual_seed(spec.seed)
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
