"""Test text and tuning text: what is reported and what defaults are chosen on share no document.

Both are held-out documents in one order, test text from its start and tuning text from its end, so that they meet only
where much of a text is read.  Results on disk say how much of it was read before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from evaluation.results.metrics import LOG_PPLX
from evaluation.results.readouts import is_of_tuning_text
from evaluation.results.store import ResultStore
from matquant.config.cell import ModelSpec, TextSpec
from matquant.errors import UserError
from matquant.models.text import can_be

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
            sizes = {name: protocol.get(name) for name in SIZES}
            found[path.name] = held_out.model_copy(update={**sizes, "part": "test" if is_tuning else "tuning"})
    yield from {json.dumps(text.model_dump(mode="json")): text for text in found.values()}.values()


def check_apart(held_out: TextSpec, other: TextSpec, model: ModelSpec, *, results: Path, cache: Path) -> None:
    """Refuses a text that takes documents which the other part of it has taken."""
    from matquant.models.loading import tokenizer_of  # transformers takes seconds to import
    from matquant.models.tokens import blocks_before

    tokenizer = tokenizer_of(model, cache=cache)
    number = blocks_before(held_out, other, tokenizer, add_bos=model.add_bos is True)
    if number is None:
        return
    remedy = f"set readout.perplexity.num_sequences={number}" if number else "give more text"
    raise UserError(
        f"readout.perplexity.num_sequences={held_out.num_sequences}: the {held_out.part} text takes documents that "
        f"{results} holds numbers of as {other.part} text; {remedy}"
    )
