"""Requests in rows of tokens: the answers of a document share its text, and see it and themselves alone.

    position   0 1 2 3 4 | 5 6 | 5 6 7 | 5 6
    token      question  | a a | b b b | c c

Pure bookkeeping: `language_model` runs the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matquant.errors import UserError

PADDING = -1
"""The branch of the tokens that fill a row up; 0 is the shared text."""
LONGEST_ROW = 1024
"""The most tokens of several answers in one row; attention is quadratic in its length."""
WORTH_SHARING = 0.1
"""The share of tokens that has to be saved for answers to be put into one row."""
SHORTEST_IN_BATCH = 0.8
"""The share of a batch's longest row that its others reach at least; a shorter row waits for the next batch."""


class Request(NamedTuple):
    """Tokens that the model is given, and the tokens that its last positions should predict."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def of(cls, context: Sequence[int], continuation: Sequence[int], *, max_length: int) -> Request:
        """A request cut from the left to what the model takes, as by lm-eval; UserError if the continuation is cut."""
        if len(continuation) > max_length:
            raise UserError(
                f"an answer of {len(continuation)} tokens is longer than the {max_length} tokens that the model takes; "
                "leave its task out of readout.tasks"
            )
        tokens = (*context, *continuation)[-(max_length + 1) :]
        return cls(tuple(tokens[:-1]), tuple(continuation))

    @property
    def first_scored(self) -> int:
        return len(self.inputs) - len(self.targets)


@dataclass(frozen=True)
class PackedRow:
    """Requests in one sequence: `branches` is 0 where text is shared, then 1, 2, ... for each request's own.

    `scored`: for each request, by its number, the places in the row whose next token is a target.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    scored: Mapping[int, tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.tokens)


def shared_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens that all sequences have in common at their start."""
    first, last = min(sequences), max(sequences)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def row_of(requests: Mapping[int, Request]) -> PackedRow:
    """All requests in one row."""
    shared = shared_length([request.inputs for request in requests.values()])
    some = next(iter(requests.values()))
    tokens, positions, branches = list(some.inputs[:shared]), list(range(shared)), [0] * shared
    scored = {}
    for branch, (number, request) in enumerate(requests.items(), start=1):
        offset, length = len(tokens) - shared, len(request.inputs)
        tokens += request.inputs[shared:]
        positions += range(shared, length)
        branches += [branch] * (length - shared)
        places = range(request.first_scored, length)
        scored[number] = tuple(place if place < shared else place + offset for place in places)
    return PackedRow(tuple(tokens), tuple(positions), tuple(branches), scored)


def pack(requests: Sequence[Request], documents: Sequence[Hashable]) -> list[PackedRow]:
    """Rows that hold every request once, those of a document together where that saves tokens."""
    by_document: dict[Hashable, dict[int, Request]] = {}
    for number, (request, document) in enumerate(zip(requests, documents, strict=True)):
        by_document.setdefault(document, {})[number] = request
    return [row for together in by_document.values() for row in _rows_of_document(together)]


def _rows_of_document(requests: Mapping[int, Request]) -> Iterator[PackedRow]:
    one_by_one = sum(len(request.inputs) for request in requests.values())
    together: dict[int, Request] = {}
    rows = []
    for number, request in requests.items():
        grown = {**together, number: request}
        if together and len(row_of(grown)) > LONGEST_ROW:
            rows.append(row_of(together))
            grown = {number: request}
        together = grown
    rows.append(row_of(together))
    if sum(len(row) for row in rows) <= (1 - WORTH_SHARING) * one_by_one:
        yield from rows
    else:
        yield from (row_of({number: request}) for number, request in requests.items())


def batches_of(rows: Iterable[PackedRow], *, batch_size: int) -> Iterator[list[PackedRow]]:
    """Rows of similar length, longest first, with at most `batch_size` requests in a batch (or a single row).

    A batch also ends where filling its next row up to its longest would waste too much.
    """
    batch: list[PackedRow] = []
    size = 0
    for row in sorted(rows, key=lambda row: (-len(row), row.tokens)):
        if batch and (size + len(row.scored) > batch_size or len(row) < SHORTEST_IN_BATCH * len(batch[0])):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row.scored)
    if batch:
        yield batch


class Reach(NamedTuple):
    """The positions that attention reaches back to; None: all."""

    window: int | None = None
    """The number of positions back, a token's own included."""
    chunk: int | None = None
    """The length of the chunks that a text is cut into; a token reaches those before it in its own (Llama-4)."""

    def limit(self, visible: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """The visible tokens, as far as positions reach."""
        if self.window is not None:
            visible = visible & (own - other < self.window)
        if self.chunk is not None:
            visible = visible & (own // self.chunk == other // self.chunk)
        return visible

    @classmethod
    def of(cls, config: Any) -> dict[str, Reach]:
        """The reach of each type of layer, by a model's configuration; of a model with one type, under any name.

        A key that the configuration's class does not know is no setting: the model does not look at it.
        """
        known = {field.name for field in fields(config)}
        window, chunk = (
            getattr(config, name) if name in known else None for name in ("sliding_window", "attention_chunk_size")
        )
        by_kind = {"sliding_attention": cls(window=window), "chunked_attention": cls(chunk=chunk)}
        kinds = getattr(config, "layer_types", None)
        return {kind: by_kind.get(kind, cls()) for kind in kinds} if kinds else {"": cls(window=window)}


def attention_mask(branches: Tensor, positions: Tensor, reach: Reach) -> Tensor:
    """[rows, 1, tokens, tokens], True where a token may look: the shared text and its own branch, up to itself."""
    own, other = branches.unsqueeze(-1), branches.unsqueeze(-2)
    place = torch.arange(branches.shape[-1], device=branches.device)
    visible = ((other == 0) | (own == other)) & (place.unsqueeze(-1) >= place)
    visible = reach.limit(visible, positions.unsqueeze(-1), positions.unsqueeze(-2))
    # Padding sees itself at least: a softmax over nothing is not a number, and spreads.
    return (visible | torch.eye(len(place), dtype=torch.bool, device=branches.device)).unsqueeze(1)
