"""The weights and the text behind the numbers of one table: one place may have held several, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.results.store import Result
    from matquant.config.cell import Cell

AMOUNTS = {"dtype", "add_bos", "num_sequences", "sequence_length", "tokens_per_document"}
"""The fields of a model or a text that leave its content as it is."""


def mixed_sources(results: Iterable[Result], cells: Sequence[Cell]) -> list[str]:
    """A sentence for each model, and for each text, that had several contents under one name.

    A run compares the content with what its own cell was made of; here the cells of a table are compared.
    """
    by_id = {cell.id: cell for cell in cells}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        cell = by_id[result.cell_id]
        for part, spec in (("model", cell.model), ("text", cell.data)):
            if spec is not None and part in result.sources:
                contents = found.setdefault((part, spec.model_dump_json(exclude=AMOUNTS)), {})
                contents.setdefault(result.sources[part], result.cell_id)
    return [
        f"{_made(cell_ids.values())} from {len(cell_ids)} contents of one {part} of the same name; "
        "do not compare them: delete the runs and the results of all but one, and run those again"
        for (part, _), cell_ids in found.items()
        if len(cell_ids) > 1
    ]


def _made(cell_ids: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(cell_ids))
    return f"{' and '.join(distinct)} {'was' if len(distinct) == 1 else 'were'} made"
