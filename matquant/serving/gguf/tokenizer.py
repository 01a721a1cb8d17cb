"""A tokenizer in the fields that llama.cpp reads: byte-level BPE ("gpt2"), or BPE over characters ("llama").

How byte-level BPE cuts text before it merges is a name in llama.cpp, and here it is recognized by its rules, not by the
model.  A tokenizer made from sentencepiece has merges, and llama.cpp wants scores: the rank of the first merge that
makes a token, negated, merges in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from matquant.errors import UserError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_NEVER = -1e9
"""The score of a token that no merge makes."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[str, str] = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
"""llama.cpp's names of the expressions by which text is cut."""


class Tokens(NamedTuple):
    """The fields of a vocabulary, as `GGUFWriter` takes them."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] | None = None
    scores: Sequence[float] | None = None
    add_space_prefix: bool = False


def tokens_of(tokenizer: PreTrainedTokenizerBase, size: int) -> Tokens:
    """The vocabulary, filled up to the number of embeddings; UserError for a tokenizer of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown(type(tokenizer).__name__)
    parts = json.loads(backend.to_str())
    model, added = parts["model"], parts["added_tokens"]
    if model["type"] != "BPE":
        raise _unknown(model["type"])
    names: dict[int, str] = {index: token for token, index in model["vocab"].items()}
    names |= {token["id"]: token["content"] for token in added}
    if len(names) > size:
        raise UserError(f"gguf: the tokenizer has {len(names)} tokens and the model {size} embeddings; export dense")
    tokens = [names.get(index, f"[PAD{index}]") for index in range(size)]
    types = [_NORMAL if index in names else _UNUSED for index in range(size)]
    for token in added:
        types[token["id"]] = _CONTROL if token["special"] else _USER
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if model.get("byte_fallback"):
        for token, index in model["vocab"].items():
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                types[index] = _BYTE
        if model.get("unk_token") in model["vocab"]:
            types[model["vocab"][model["unk_token"]]] = _UNKNOWN
        ranks: dict[str, float] = {}
        for rank, (left, right) in enumerate(merges):
            ranks.setdefault(left + right, -float(rank))
        scores = [ranks.get(token, _NEVER) for token in tokens]
        return Tokens("llama", "default", tokens, types, scores=scores, add_space_prefix=_adds_space(parts))
    return Tokens("gpt2", _pre(parts), tokens, types, merges=[" ".join(merge) for merge in merges])


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, one after the other."""
    if part is None:
        return []
    return [step for inner in part[key] for step in _steps(inner, key)] if part["type"] == "Sequence" else [part]


def _pre(parts: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer cuts text."""
    normal = [step["type"] for step in _steps(parts["normalizer"], "normalizers")]
    steps = _steps(parts["pre_tokenizer"], "pretokenizers")
    kinds = [step["type"] for step in steps]
    if normal in ([], ["NFC"]) and steps and kinds[-1] == "ByteLevel" and not steps[-1]["add_prefix_space"]:
        if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"] and steps[0]["behavior"] == "Isolated":
            expression = steps[0]["pattern"].get("Regex")
            if expression in SPLITS:
                return SPLITS[expression]
    raise _unknown(", ".join([*normal, *kinds]) or "no rules")


def _adds_space(parts: Mapping[str, Any]) -> bool:
    """True if a text begins with a space that is not in it."""
    normal, steps = _steps(parts["normalizer"], "normalizers"), _steps(parts["pre_tokenizer"], "pretokenizers")
    known = ("Prepend", "Replace", "Metaspace", "Split")
    if any(step["type"] not in known for step in [*normal, *steps]):
        raise _unknown(", ".join(step["type"] for step in [*normal, *steps]))
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step["prepend_scheme"] != "never")
        for step in [*normal, *steps]
    )


def _unknown(kind: str) -> UserError:
    return UserError(
        f"gguf: llama.cpp's name for a tokenizer of this kind ({kind}) is not known here; export dense, and convert "
        "that folder with llama.cpp's convert_hf_to_gguf.py"
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that begin and end a text, stand for what is unknown, and fill up, under llama.cpp's names."""
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    return {name: number for name, number in found.items() if isinstance(number, int)}


def adds(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """True where a text is begun with the first of them, and ended with the second."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    extra = len(whole) - len(plain)
    begins = extra > 0 and whole[0] == tokenizer.bos_token_id and whole[1 : 1 + len(plain)] == plain
    return begins, extra > 0 and whole[-1] == tokenizer.eos_token_id and whole[-1 - len(plain) : -1] == plain
