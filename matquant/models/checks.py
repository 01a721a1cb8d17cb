"""Refusals of models by their configuration and their tokenizer: before any weight is read, each in one sentence."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedTokenizerBase

from matquant.config.cell import Cell, FolderModel, ForeignModel, HubModel, ModelSpec, TextSpec
from matquant.disk import is_full
from matquant.errors import UserError
from matquant.models.hub import is_silent

POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length", "max_seq_len")
"""The names under which configurations keep the most tokens that a model takes."""
EMBEDDED = "use model=smollm2_135m, which is embedded"
COPIED = "or model=folder model.path=FOLDER model.name=NAME for a local copy"
SAVED_TOKENIZER = "tokenizer.save_pretrained(FOLDER)"
UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
"""Whatever `transformers` raises for files that it cannot make a model of."""


def title(spec: ModelSpec) -> str:
    """A model as it was typed."""
    match spec:
        case HubModel():
            return f"model.repo={spec.repo}"
        case FolderModel() | ForeignModel():
            return f"model.path={spec.path}"
        case _:
            return f"model {spec.name}"


# --- configuration ---------------------------------------------------------------------------------------------------


def check_config(spec: ModelSpec, facts: Mapping[str, Any]) -> None:
    """Refuses, by what is in its config.json, a model that is no plain causal language model of `transformers`."""
    kind, known = facts.get("model_type"), f"transformers {transformers.__version__}"
    what = f"{title(spec)} has model_type={kind}"
    if not kind:
        raise UserError(f"{title(spec)} has no model_type in its config.json; copy or download it again")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in facts:
            raise UserError(
                f"{what}, which {known} does not know, and brings its own code, which is not run here; "
                "choose a model of which transformers has the code"
            )
        raise UserError(
            f"{what}, which {known} does not know; choose another model, or another version of transformers"
        )
    if (method := _quantization(facts)) is not None:
        raise UserError(
            f"{title(spec)} is already quantized ({method}); give its unquantized weights, or measure it as it is with "
            "base=foreign"
        )
    config = CONFIG_MAPPING[kind]
    if config not in MODEL_FOR_CAUSAL_LM_MAPPING or facts.get("is_encoder_decoder"):
        of = ", ".join(facts.get("architectures") or [config.__name__])
        raise UserError(
            f"{what} ({of}), which is no causal language model; give one that predicts the next token, or {EMBEDDED}"
        )


def _quantization(facts: Mapping[str, Any]) -> str | None:
    """The method and width of codes that a model is stored in, such as `gptq, 4 bits`."""
    places = [facts, *(value for key, value in facts.items() if key.endswith("_config") and isinstance(value, dict))]
    for place in places:
        found = place.get("quantization_config") or place.get("compression_config")
        if isinstance(found, dict) and found:
            method = found.get("quant_method", "unknown method")
            widths = {"load_in_4bit": 4, "load_in_8bit": 8}
            bits = found.get("bits") or next((bits for key, bits in widths.items() if found.get(key)), None)
            return f"{method}, {bits} bits" if bits else str(method)
    return None


def longest_text(config: PretrainedConfig) -> int | None:
    """The most tokens that a model takes at once, by its configuration; None where that names no limit."""
    found = (getattr(config.get_text_config(), name, None) for name in POSITIONS)
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def check_lengths(cell: Cell, heldout: TextSpec | None, config: PretrainedConfig) -> None:
    """Refuses calibration or held-out text whose sequences are longer than the model takes."""
    longest = longest_text(config)
    texts = {"data": cell.data, "readout.perplexity": heldout}
    for key, text in texts.items():
        if longest is not None and text is not None and text.sequence_length > longest:
            raise UserError(
                f"{key}.sequence_length={text.sequence_length} is longer than the {longest} tokens that "
                f"{title(cell.model)} takes; set {key}.sequence_length={longest}"
            )


# --- tokenizer -------------------------------------------------------------------------------------------------------


def check_tokenizer(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, num_embeddings: int, own: Container[str] | None = None
) -> None:
    """Refuses a tokenizer that reads no text, has more tokens than the model, or sets BOS where it is not wanted.

    `own`: the tokens of the file that it was made of, where its class may have added others.
    """
    known = tokenizer.get_vocab()
    text = tokenizer.encode("a text", add_special_tokens=False)
    if not text or all(token == tokenizer.unk_token_id for token in text):
        raise UserError(
            f"{title(spec)} has no tokenizer that reads text ({type(tokenizer).__name__} with {len(known)} tokens); "
            f"save its tokenizer there too: {SAVED_TOKENIZER}"
        )
    _check_size(spec, tokenizer, known, num_embeddings, own)
    _check_bos(spec, tokenizer)


def _check_size(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    known: Mapping[str, int],
    num_embeddings: int,
    own: Container[str] | None,
) -> None:
    # Gemma-3 1B, which reads text alone, has its family's mark for images behind the last row of its embedding.
    marks = {getattr(tokenizer, f"{kind}_token", None) for kind in ("image", "audio", "video")}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and getattr(backend.model, "unk_token", None) is None:
        marks.add(tokenizer.unk_token)  # nothing is unknown to bytes: Qwen2's class adds one to any tokenizer
    if own is not None:  # GPT-2's class gives any byte-level vocabulary of a GGUF file an <|endoftext|>
        special = {token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
        added: Mapping[str, int] = cast(Any, tokenizer).get_added_vocab()
        marks |= {token for token in added if token not in own} - special
    outside = {token: index for token, index in known.items() if index >= num_embeddings and token not in marks}
    if outside:
        token, index = max(outside.items(), key=lambda item: item[1])
        raise UserError(
            f"the tokenizer of {title(spec)} is larger than its embedding: {token!r} has the id {index}, and the "
            f"embedding has {num_embeddings} rows; give the tokenizer that the model was trained with"
        )


def around_text(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind every text: BOS, often none, and `[gMASK] <sop>` for GLM."""
    whole, text = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    starts = (start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    start = next(starts, 0)
    return whole[:start], whole[start + len(text) :]


def _check_bos(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> None:
    (found, behind), bos = around_text(tokenizer), tokenizer.bos_token
    words, begins = "".join(tokenizer.convert_ids_to_tokens(found)), found[:1] == [tokenizer.bos_token_id]
    if found and spec.add_bos is False:
        only, folder = "set model.add_bos=never to measure without it", title(spec).partition("=")[2]
        if begins:
            how = "set model.add_bos=true, or model.add_bos=never to measure without it"
        elif len(found) == 1 and isinstance(spec, FolderModel):
            how = (
                f"{only}, or write {words} as bos_token into {folder}/tokenizer_config.json and set model.add_bos=true"
            )
        else:
            how = only
        raise UserError(
            f"the tokenizer of {title(spec)} begins every text with {words}, "
            f"and model.add_bos=false leaves it out; {how}"
        )
    if spec.add_bos is True and not begins:
        instead = f"begins every text with {words}, not with" if found else "begins no text with"
        raise UserError(
            f"model.add_bos=true, but the tokenizer of {title(spec)} {instead} a BOS token (bos_token={bos!r}); "
            f"set model.add_bos={'never' if found else 'false'}"
        )
    if spec.add_bos is True and behind:  # lm-eval would score it as a part of each answer
        raise UserError(
            f"the tokenizer of {title(spec)} ends every text with {''.join(tokenizer.convert_ids_to_tokens(behind))}, "
            "also between a question and its answer; save it without (add_eos_token=False), or set model.add_bos=never"
        )


# --- words -----------------------------------------------------------------------------------------------------------


@contextmanager
def plain_words(spec: ModelSpec, part: str = "model") -> Iterator[None]:
    """Turns every failure to read a model, or its tokenizer, into one sentence."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except UNREADABLE as error:
        if is_full(error):
            raise
        raise UserError(_why(spec, part, error)) from error


def _why(spec: ModelSpec, part: str, error: Exception) -> str:
    reason = f"({first_sentence(error)})"
    if "trust_remote_code" in str(error):
        return (
            f"the {part} of {title(spec)} has its own code, which is not run here; choose one that transformers knows"
        )
    if part == "tokenizer" and (not isinstance(spec, HubModel) or is_cached(spec)):
        return (
            f"{title(spec)} has no tokenizer that can be read {reason}; save its tokenizer there too: {SAVED_TOKENIZER}"
        )
    if isinstance(spec, HubModel):
        return f"{_why_not_from_the_hub(spec, list(_causes(error)), reason)}, {EMBEDDED}, {COPIED}"
    return f"{title(spec)} cannot be read {reason}; copy or download it again, or {EMBEDDED}"


def _why_not_from_the_hub(spec: HubModel, causes: Sequence[BaseException], reason: str) -> str:
    """The sentence about a model of the hub that cannot be read, with its remedy."""
    model = f"{title(spec)} (revision {spec.revision})"

    def is_caused_by(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if is_caused_by(GatedRepoError):
        page = f"https://huggingface.co/{spec.repo}"
        return f"{model} is gated, and this machine has no access to it; ask for it on {page} and run `hf auth login`"
    if is_caused_by(RevisionNotFoundError):
        return f"model.repo={spec.repo} has no revision {spec.revision} on the hub; set model.revision=main"
    if is_caused_by(RepositoryNotFoundError):
        return f"{model} is not on the hub, or is private; correct model.repo"
    if is_cached(spec) and not is_caused_by(LocalEntryNotFoundError):
        return f"{model} is there, but cannot be read {reason}; correct model.repo or model.revision"
    asked = (
        "HF_HUB_OFFLINE=1 keeps the hub from being asked"
        if is_offline_mode() and not is_silent()
        else "the hub cannot be reached"
    )
    state = "only partly in the local cache" if is_cached(spec) else "not in the local cache"
    return f"{model} is {state}, and {asked} {reason}; download it where there is a network"


def first_sentence(error: Exception) -> str:
    """The first sentence of what an exception says, in one line."""
    words = " ".join(str(error).split())
    return words.split(". ")[0].rstrip(".") or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_cached(spec: HubModel) -> bool:
    """True if a hub model's configuration is in the local cache."""
    return isinstance(try_to_load_from_cache(spec.repo, "config.json", revision=spec.revision), str)
