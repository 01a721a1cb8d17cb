"""A fact of a stored protocol that differs from what a read-out asks for, in words and as the option that sets it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.results.metrics import LOG_PPLX
from evaluation.sources.table import SPLITS, scored_split
from matquant.config.cell import PACKED, HubText
from matquant.models.wheels import DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evaluation.results.store import Protocol
    from matquant.config.setup import Readout

TYPED: Mapping[str, str] = {
    "limit": "readout.limit",
    "batch_size": "readout.batch_size",
    "dtype": "readout.dtype",
    "add_bos": "model.add_bos",
    "cut_contexts": "readout.cut_contexts",
    "num_fewshot": "readout.num_fewshot",
    "apply_chat_template": "readout.apply_chat_template",
    "fewshot_as_multiturn": "readout.fewshot_as_multiturn",
    "num_sequences": "readout.perplexity.num_sequences",
    "sequence_length": "readout.perplexity.sequence_length",
    "tokens_per_document": "readout.perplexity.tokens_per_document",
    "part": "readout.perplexity.part",
    "num_rows": "readout.perplexity.num_rows",
    "most_sequences": "readout.perplexity.most_sequences",
    "special_tokens": "readout.perplexity.special_tokens",
    "heldout_split": "readout.perplexity.heldout_split",
    "column": "readout.perplexity.column",
}
"""The facts of a protocol that are options under a name."""

SIZES = ("num_sequences", "sequence_length", "tokens_per_document")
EMBEDDED_TEXT = "prose of "
"""The beginning of the embedded text's revision."""


class Option(NamedTuple):
    """A difference in words, `limit 50 instead of 100`, and the option that asks for the stored value; empty: none."""

    difference: str
    typed: str


def option_of(name: str, stored: Any, asked: Any) -> Option:
    """The difference of a fact that has an option of its own, or none."""
    if name == "cut_contexts":  # is left out of protocols where it is false
        stored, asked = bool(stored), bool(asked)
    if name == "part":  # is left out of protocols of test text
        stored, asked = stored or "test", asked or "test"
    if name in PACKED:  # are left out of protocols where they are the usual ones
        usual = HubText.model_fields[name].default
        stored, asked = (usual if value is None else value for value in (stored, asked))
    if name == "separator":  # a line's end cannot be typed
        typed = "readout.perplexity.separator=null" if stored is None else ""
        return Option(f"separator {stored!r} instead of {asked!r}", typed)
    if name == "apply_chat_template":  # is left out of protocols of plain prompts, as what belongs to chats is
        stored, asked = bool(stored), bool(asked)
    if name == "gen_kwargs" or (name == "system_instruction" and stored is None):
        return Option(f"{name} {_words(stored)} instead of {_words(asked)}", _typed_settings(name, stored))
    if name == "num_fewshot" and isinstance(stored, list):  # of a group: each task has as many as its yaml says
        return Option(f"num_fewshot {stored} instead of {asked}", "readout.num_fewshot=null")
    typed = f"{TYPED[name]}={written(stored)}" if name in TYPED else ""
    return Option(f"{name} {_words(stored)} instead of {_words(asked)}", typed)


def _typed_settings(name: str, stored: Any) -> str:
    """The option of settings by name; empty where a value would need quotes of its own."""
    if stored is None:
        return f"readout.{name}=null"
    if not all(isinstance(value, bool | int | float) for value in stored.values()):
        return ""
    settings = ",".join(f"{key}:{written(value)}" for key, value in stored.items())
    return f"readout.{name}='{{{settings}}}'"


def option_of_documents(stored: Protocol, asked: Readout, task: str) -> Option:
    """Another text, split or source; one that no option can tell wholly has none."""
    return other_text(stored, asked) if task == LOG_PPLX else _documents(str(stored.get("data")), asked, task)


def _words(value: Any) -> str:
    return "none" if value is None else str(value)


def written(value: Any) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _documents(stored: str, asked: Readout, task: str) -> Option:
    source, split = _source(stored), stored.rpartition("/")[2]
    if source == asked.source:
        other = scored_split(task, asked.arc_split)
        if split in SPLITS and split != other:
            typed = f"readout.arc_split={split}" if other == asked.arc_split else ""
            return Option(f"split {split} instead of {other}", typed)
        return Option(f"documents {stored} instead of those of readout.source={asked.source}", "")
    typed = f"readout.source={source}"
    if source == "folder":
        # <folder>/<task>@<content>
        typed += f" readout.data_dir={stored.rpartition('@')[0].removesuffix(f'/{task}')}"
    elif asked.source == "folder":
        typed += " readout.data_dir=null"
    if split in SPLITS and split != scored_split(task, asked.arc_split):
        typed += f" readout.arc_split={split}"
    return Option(f"source {source} instead of {asked.source}", typed)


def _source(stored: str) -> str:
    if stored.startswith(DOCUMENTS.requirement.partition("==")[0]):
        return "embedded"
    return "folder" if re.fullmatch(r"(/|[A-Za-z]:).*@[0-9a-f]{12}", stored) else "hub"


def other_text(stored: Protocol, asked: Readout) -> Option:
    """Another text, and the options of the embedded one."""
    kind = "none" if asked.perplexity is None else asked.perplexity.kind
    data, typed = str(stored.get("data")), ""
    if data.startswith(EMBEDDED_TEXT) and kind != "embedded":
        # Another text comes with its own size, so that all of it has to be typed.
        sizes = [f"readout.perplexity.{name}={written(stored.get(name))}" for name in SIZES]
        part = [f"readout.perplexity.part={stored['part']}"] if "part" in stored else []
        typed = " ".join(["perplexity=embedded", *sizes, *part])
    return Option(f"text {data!r} instead of that of readout.perplexity ({kind})", typed)
