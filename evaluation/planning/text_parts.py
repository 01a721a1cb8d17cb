"""Test text and tuning text: what is reported and what defaults are chosen on share no document.

Both are held-out documents in one order, test text from its start and tuning text from its end, so that they meet only
where much of a text is read.  Results on disk say how much of it was read before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.protocol import WINDOWS
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.readouts import is_of_tuning_text
from evaluation.results.store import Protocol, ResultStore
from matquant.config.cell import PACKED, HubText, ModelSpec, TextSpec
from matquant.errors import UserError
from matquant.models.text.documents import can_be, is_of_windows

SIZES = ("num_sequences", "sequence_length", "tokens_per_document")


def other_parts(cell_id: str, held_out: TextSpec, store: ResultStore) -> Iterator[TextSpec]:
    """The other part of a text, as often as a cell was measured on some amount of it."""
    is_tuning, found = held_out.part == "tuning", dict[str, TextSpec]()
    for path in store.paths(cell_id):
        if not path.name.startswith(f"{LOG_PPLX}-") or path.name in found:
            continue
        try:
            protocol = store.read(path).protocol
        except (OSError, ValueError):
            continue  # a damaged one is measured again
        if is_of_tuning_text(protocol) != is_tuning and can_be(held_out, str(protocol.get("data"))):
            facts = {name: protocol.get(name) for name in SIZES} | _windows(held_out, protocol)
            found[path.name] = held_out.model_copy(update={**facts, "part": "test" if is_tuning else "tuning"})
    yield from {json.dumps(text.model_dump(mode="json")): text for text in found.values()}.values()


def _windows(held_out: TextSpec, protocol: Protocol) -> dict[str, Any]:
    """The facts that a stored text of the hub was read with: those of windows, or the unusual ones of packed text."""
    if not isinstance(held_out, HubText):
        return {}
    if "convention" in protocol:
        return {name: protocol[name] for name in WINDOWS}
    packed = {name: protocol.get(name, HubText.model_fields[name].default) for name in PACKED}
    return packed | ({"convention": "blocks", "num_rows": None} if is_of_windows(held_out) else {})


def check_apart(held_out: TextSpec, other: TextSpec, model: ModelSpec, *, results: Path, cache: Path) -> None:
    """Refuses a text that takes documents which the other part of it has taken."""
    from matquant.models.loading import tokenizer_of  # transformers takes seconds to import
    from matquant.models.text.tokens import blocks_before

    tokenizer = tokenizer_of(model, cache=cache)
    number = blocks_before(held_out, other, tokenizer, add_bos=model.add_bos is True)
    if number is None:
        return
    if is_of_windows(held_out) or is_of_windows(other):
        raise UserError(
            f"readout.perplexity: the {held_out.part} text takes rows that {results} holds numbers of as {other.part} "
            "text; choose defaults on perplexity=tuning, and set paths.results to a folder without those numbers"
        )
    remedy = f"set readout.perplexity.num_sequences={number}" if number else "give more text"
    amount = held_out.num_sequences or "null"
    raise UserError(
        f"readout.perplexity.num_sequences={amount}: the {held_out.part} text takes documents that "
        f"{results} holds numbers of as {other.part} text; {remedy}"
    )
