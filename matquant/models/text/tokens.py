"""Token blocks: text tokenized and packed into sequences of equal length, for calibration, training and perplexity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, assert_never

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from matquant.config.cell import (
    Cell,
    EmbeddedText,
    FilesText,
    ForeignBase,
    HubText,
    MinMaxBase,
    NoBase,
    TextSpec,
)
from matquant.config.setup import SearchSpec
from matquant.errors import UserError
from matquant.models.text.documents import KEYS, Split, documents, is_of_windows, joined_rows
from matquant.models.text.windows import windows

PARTS: Mapping[Split, str] = {
    "train": "to train on (nine documents of ten",
    "heldout": "held out (one document of ten",
}
OF_TUNING_TEXT = "of tuning text (half of what is held out, one document of twenty"
SHORTEST = 16
"""Tokens of the shortest sequence that is worth naming."""
HELDOUT_SEED = 0
"""The seed of the order of held-out documents, one for all cells."""


def token_blocks(
    spec: TextSpec,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    *,
    seed: int,
    add_bos: bool,
    number_key: str | None = None,
    fewest: int = 1,
) -> Int[Tensor, "sequences tokens"]:
    """Documents in an order drawn from `seed`, joined by the end-of-text token and cut into equal blocks.

    A document gives at most its first `tokens_per_document` tokens, if the text has such a limit.
    With `add_bos` every block starts with the begin-of-text token, which Gemma needs.
    Without `num_sequences` there are as many blocks as the text has.
    Raises UserError if the text is too short for `num_sequences` blocks of `sequence_length` tokens.  `number_key` is
    the key of that number, if it is not the text's own, and `fewest` the smallest that is worth naming as a remedy.
    """
    body = spec.sequence_length - int(add_bos)
    wanted = None if spec.num_sequences is None else spec.num_sequences * body
    tokens = [token for read in _read(spec, tokenizer, split, seed=seed, needed=wanted) for token in read.tokens]
    number = spec.num_sequences or max(1, len(tokens) // body)
    needed = number * body
    if len(tokens) < needed:
        number_key = number_key or f"{KEYS[split]}.num_sequences"
        raise UserError(_too_short(spec, split, len(tokens), int(add_bos), number_key, fewest))
    packed = torch.tensor(tokens[:needed]).view(number, body)
    if not add_bos:
        return packed
    if not isinstance(tokenizer.bos_token_id, int):
        raise UserError("model.add_bos=true, but the tokenizer has no begin-of-text token; set model.add_bos=false")
    return torch.cat([torch.full((number, 1), tokenizer.bos_token_id), packed], dim=1)


class _Document(NamedTuple):
    """A document and the tokens that it gives."""

    text: str
    tokens: list[int]


def _read(
    spec: TextSpec, tokenizer: PreTrainedTokenizerBase, split: Split, *, seed: int, needed: int | None
) -> Iterator[_Document]:
    """Documents with their tokens, until there are as many tokens as are needed; None: all documents."""
    end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    for document in documents(spec, split, seed=seed):
        tokens = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = [*tokens[: spec.tokens_per_document], *end]
        yield _Document(document, tokens)
        if needed is not None:
            needed -= len(tokens)
            if needed <= 0:
                return


def training_tokens(cell: Cell, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "sequences tokens"]:
    """The calibration or training text of a cell; nothing for a cell that needs none."""
    if cell.data is None:
        return torch.empty(0, 0, dtype=torch.long)
    batch = 1 if isinstance(cell.base, NoBase | ForeignBase | MinMaxBase) else cell.base.batch_size
    return token_blocks(cell.data, tokenizer, "train", seed=cell.seed, add_bos=cell.sets_bos, fewest=batch)


def search_tokens(
    cell: Cell, search: SearchSpec, tokenizer: PreTrainedTokenizerBase
) -> Int[Tensor, "sequences tokens"]:
    """The text that the searches of a cell measure their loss on: as many sequences of its calibration text."""
    assert cell.data is not None
    data = cell.data.model_copy(update={"num_sequences": search.num_sequences})
    key = "readout.search.num_sequences"
    return token_blocks(data, tokenizer, "train", seed=cell.seed, add_bos=cell.sets_bos, number_key=key)


def heldout_tokens(
    spec: TextSpec, tokenizer: PreTrainedTokenizerBase, *, add_bos: bool
) -> Int[Tensor, "sequences tokens"]:
    """The text of log perplexity, the same for cells of all seeds."""
    if is_of_windows(spec):
        return windows(spec, tokenizer)
    return token_blocks(spec, tokenizer, "heldout", seed=HELDOUT_SEED, add_bos=add_bos)


def digest_of(tokens: Int[Tensor, "sequences tokens"]) -> str:
    """Twelve digits over the tokens that a number is about: another tokenizer makes other ones of the same text."""
    return hashlib.sha256(tokens.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()[:12]


def blocks_before(spec: TextSpec, other: TextSpec, tokenizer: PreTrainedTokenizerBase, *, add_bos: bool) -> int | None:
    """The number of blocks of a held-out text before the first document that another text takes too; None: no such."""
    body = spec.sequence_length - int(add_bos)

    def texts(text: TextSpec) -> set[str]:
        return joined_rows(text) if is_of_windows(text) else {document.text for document in read(text)}

    def read(text: TextSpec) -> Iterator[_Document]:
        needed = text.num_sequences and text.num_sequences * (text.sequence_length - int(add_bos))
        return _read(text, tokenizer, "heldout", seed=HELDOUT_SEED, needed=needed)

    taken, found = texts(other), 0
    if is_of_windows(spec):  # a row is not looked for in tokens of the whole
        return 0 if taken & joined_rows(spec) else None
    for document in read(spec):
        if document.text in taken:
            return found // body
        found += len(document.tokens)
    return None


def _too_short(spec: TextSpec, split: Split, found: int, bos: int, number_key: str, fewest: int) -> str:
    """The sentence for a text with too few tokens, with values that fit it."""
    body, name, asked = spec.sequence_length - bos, KEYS[split], spec.num_sequences or 1
    number, length = found // body, found // asked + bos
    remedies = [f"set {number_key}={number}"] if number >= fewest else []
    if length - bos >= SHORTEST:
        remedies.append(f"set {name}.sequence_length={length}")
    remedies.append("give more text")
    part = OF_TUNING_TEXT if split == "heldout" and spec.part == "tuning" else PARTS[split]
    how = "; two blank lines end a document" if isinstance(spec, FilesText) else ""
    needed = f"{number_key}={spec.num_sequences or 'null'} with {name}.sequence_length={spec.sequence_length} needs"
    return (
        f"{name}: {_named(spec)} has {found:,} tokens {part}{how}), and {needed} "
        f"{asked * body:,}; {' or '.join(remedies)}"
    )


def _named(spec: TextSpec) -> str:
    match spec:
        case FilesText():
            return f"paths=[{','.join(spec.paths)}]"
        case HubText():
            return f"repo={spec.repo}"
        case EmbeddedText():
            return "the embedded text"
        case _:
            assert_never(spec)
