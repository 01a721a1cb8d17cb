"""Token blocks: text tokenized and packed into sequences of equal length, for calibration, training and perplexity."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from matquant.config.cell import TextSpec
from matquant.errors import UserError
from matquant.models.text import Split, documents


def token_blocks(
    spec: TextSpec, tokenizer: PreTrainedTokenizerBase, split: Split, *, seed: int, add_bos: bool
) -> Int[Tensor, "sequences tokens"]:
    """Documents in an order drawn from `seed`, joined by the end-of-text token and cut into equal blocks.

    A document gives at most its first `tokens_per_document` tokens, if the text has such a limit.
    With `add_bos` every block starts with the begin-of-text token, which Gemma needs.
    Raises UserError if the text is too short for `num_sequences` blocks of `sequence_length` tokens.
    """
    body = spec.sequence_length - int(add_bos)
    needed = spec.num_sequences * body
    tokens: list[int] = []
    for document in documents(spec, split, seed=seed):
        of_document = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        tokens += of_document[: spec.tokens_per_document]
        if isinstance(tokenizer.eos_token_id, int):
            tokens.append(tokenizer.eos_token_id)
        if len(tokens) >= needed:
            break
    if len(tokens) < needed:
        raise UserError(
            f"the {split} part of data {spec.kind} has {len(tokens):,} tokens, "
            f"but {spec.num_sequences} x {body} = {needed:,} are needed; "
            "lower num_sequences or sequence_length, or add text"
        )
    packed = torch.tensor(tokens[:needed]).view(spec.num_sequences, body)
    if not add_bos:
        return packed
    if not isinstance(tokenizer.bos_token_id, int):
        raise UserError("model.add_bos=true, but the tokenizer has no begin-of-text token; set model.add_bos=false")
    return torch.cat([torch.full((spec.num_sequences, 1), tokenizer.bos_token_id), packed], dim=1)
