"""Documents that begin alike: with the same examples, or the same system prompt, before each question.

The beginning goes through the model once and its keys and values are kept; what follows is put into strips,

    kept       1 2 3 ... 600 |
    strip                    | 601 602 603 (document 1)  601 602 (document 2)  601 602 603 604 (document 3)

in which a document sees the beginning and itself.  Pure bookkeeping: `language_model` runs the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.tasks.rows import LONGEST_ROW, PackedRow, Reach, shared_length

SHORTEST = 32
"""The fewest tokens that are worth being kept."""
WORTH_KEEPING = 0.2
"""The share of all tokens that has to be saved for beginnings to be kept: tasks without examples stay as they are."""
DEEPEST = 100
"""Texts that branch more often are not looked at more closely."""


class Family(NamedTuple):
    """Rows that begin with the same tokens; without a beginning, rows that share too little."""

    beginning: tuple[int, ...]
    rows: Sequence[PackedRow]


class Strip(NamedTuple):
    """The rest of several rows of a family, one after the other; `documents`: the number of its row for each token."""

    row: PackedRow
    documents: tuple[int, ...]


def families(rows: Sequence[PackedRow]) -> list[Family]:
    """All rows, in families if that saves enough tokens; every row is in one of them."""
    ordered = sorted(rows, key=_shareable)
    contexts = [_shareable(row) for row in ordered]
    found = _best(contexts, 0, len(contexts), 0) if contexts else _Cut(0, [])
    if found.saved < WORTH_KEEPING * sum(map(len, rows)):
        return [Family((), rows)]
    kept = [Family(contexts[start][:length], ordered[start:stop]) for start, stop, length in found.parts if length]
    rest = [row for start, stop, length in found.parts if not length for row in ordered[start:stop]]
    return [*kept, *([Family((), rest)] if rest else [])]


def _shareable(row: PackedRow) -> tuple[int, ...]:
    """The beginning of a row that may be taken from it: before its first branch and its first scored place."""
    scored = min(places[0] for places in row.scored.values())
    own = next((place for place, branch in enumerate(row.branches) if branch), len(row))
    return row.tokens[: min(scored, own)]


class _Cut(NamedTuple):
    saved: int
    parts: list[tuple[int, int, int]]
    """First row, row after the last, and the number of tokens that they share and that are kept."""


def _best(contexts: Sequence[tuple[int, ...]], start: int, stop: int, depth: int) -> _Cut:
    """The cut of some sorted contexts into families that saves most."""
    number, length = stop - start, shared_length([contexts[start], contexts[stop - 1]])
    saved = length * (number - 1) if length >= SHORTEST else 0
    whole = _Cut(saved, [(start, stop, length if saved else 0)])
    # No cut saves more than all tokens but those of the longest.
    if number == 1 or depth == DEEPEST or sum(map(len, contexts[start:stop])) - len(contexts[stop - 1]) <= saved:
        return whole
    parts, place = list[_Cut](), start
    for _, group in groupby(contexts[start:stop], key=lambda context: context[length : length + 1]):
        after = place + len(list(group))
        parts.append(_best(contexts, place, after, depth + 1))
        place = after
    if len(parts) == 1:  # equal contexts
        return whole
    apart = sum(part.saved for part in parts)
    return whole if apart <= saved else _Cut(apart, [one for part in parts for one in part.parts])


def strips(family: Family, *, batch_size: int) -> Iterator[Strip]:
    """The rest of every row of a family: at most `batch_size` rows and LONGEST_ROW tokens in a strip, or one row."""
    together: list[PackedRow] = []
    length, taken = 0, len(family.beginning)
    for row in family.rows:
        if together and (len(together) == batch_size or length + len(row) - taken > LONGEST_ROW):
            yield _strip(together, taken)
            together, length = [], 0
        together.append(row)
        length += len(row) - taken
    yield _strip(together, taken)


def _strip(rows: Sequence[PackedRow], taken: int) -> Strip:
    tokens, positions, branches, documents = list[int](), list[int](), list[int](), list[int]()
    scored: dict[int, tuple[int, ...]] = {}
    for document, row in enumerate(rows):
        moved = len(tokens) - taken
        scored |= {number: tuple(place + moved for place in places) for number, places in row.scored.items()}
        tokens += row.tokens[taken:]
        positions += row.positions[taken:]
        branches += row.branches[taken:]
        documents += [document] * (len(row) - taken)
    return Strip(PackedRow(tuple(tokens), tuple(positions), tuple(branches), scored), tuple(documents))


def strip_mask(strip: Strip, beginning: int, reach: Reach, device: torch.device) -> Tensor:
    """[1, 1, tokens, beginning + tokens], True where a token may look: the beginning, its document and its branch."""
    positions, branches, documents = (
        torch.tensor(values, device=device) for values in (strip.row.positions, strip.row.branches, strip.documents)
    )
    place = torch.arange(len(positions), device=device)
    visible = (documents.unsqueeze(-1) == documents) & (place.unsqueeze(-1) >= place)
    visible &= (branches == 0) | (branches.unsqueeze(-1) == branches)
    whole = torch.cat([visible.new_ones(len(positions), beginning), visible], dim=-1)
    seen = torch.cat([torch.arange(beginning, device=device), positions])
    return reach.limit(whole, positions.unsqueeze(-1), seen).view(1, 1, *whole.shape)
