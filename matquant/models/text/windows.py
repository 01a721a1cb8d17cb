"""Windows of a whole text, as the scripts cut them that were published with GPTQ (arXiv:2210.17323).

    tokens  = tokenizer(separator.join(rows))
    windows = tokens[: n * length] as n rows of `length`,  n = floor(len(tokens) / length)

The windows do not overlap, the rest of the text is left out, and no window begins with BOS.  The scripts print

    exp(sum over windows of (loss * length) / (n * length))

where `loss` is the mean negative log-likelihood of tokens 2 to `length` of a window.  `length` cancels: the number is
exp of the mean over windows of their losses, which is what `evaluation.text.perplexity` takes the logarithm of.

Sources, both of github.com/IST-DASLab/gptq: `llama_eval` of llama.py for the loss; datautils.py for the text.  Of
WikiText-2 it is all rows of the test split, joined by two line ends (`get_wikitext2`).  Of C4 it is the first 1100
rows of the validation split, joined by spaces, and of those the first 256 windows (`get_c4_new`).  That is their
`--new-eval`, "used in our updated results".  Their older choice (`get_c4`) takes rows at random that are longer than a
window, and other rows for another tokenizer; it is not offered.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from matquant.config.cell import HubText
from matquant.errors import UserError
from matquant.models.text.documents import documents

NAME = "readout.perplexity"


def windows(spec: HubText, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "sequences tokens"]:
    """The windows of a held-out text, at most `num_sequences` where that is set.

    Raises UserError if the text has fewer, or none.
    """
    text = next(documents(spec, "heldout", seed=0))
    # The scripts leave this to the tokenizer: one that sets BOS sets a single one, at the start of the first window.
    tokens = tokenizer(text, add_special_tokens=spec.special_tokens, verbose=False)["input_ids"]
    length = spec.sequence_length
    number = min(len(tokens) // length, spec.most_sequences or len(tokens))
    wanted = spec.num_sequences or number
    if number == 0 or wanted > number:
        raise UserError(_too_few(spec, len(tokens), number))
    return torch.tensor(tokens[: wanted * length]).view(wanted, length)


def _too_few(spec: HubText, num_tokens: int, number: int) -> str:
    """The sentence for a text with too few windows, with values that fit it."""
    length = spec.sequence_length
    has = f"{NAME}: repo={spec.repo} has {num_tokens:,} tokens"
    if number == 0:
        shorter = f"set {NAME}.sequence_length={num_tokens} or " if num_tokens > 1 else ""
        return f"{has}, less than one window of {NAME}.sequence_length={length}; {shorter}give more text"
    most = f", and the convention takes {number}" if number < num_tokens // length else ""
    return (
        f"{has}, which are {num_tokens // length} windows of {NAME}.sequence_length={length}{most}; "
        f"set {NAME}.num_sequences={number} or null instead of {spec.num_sequences}"
    )
