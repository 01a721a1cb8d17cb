"""The arguments that a model calls its blocks with, for batches of any size."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from inspect import signature
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor, nn

from matquant.errors import UserError
from matquant.models.layers.families import backbone, blocks, family_of, forward_replaced


class PerSequence(NamedTuple):
    """An argument of a block that has a part for every sequence of a batch, the same for all: alibi, for example."""

    part: Tensor


OF_POSITIONS = ("attention_mask", "position_ids", "position_embeddings", "alibi", "position_bias")
"""Arguments that depend on the places of tokens in a sequence, and not on the tokens."""


def block_arguments(model: nn.Module, tokens: Int[Tensor, "1 tokens"]) -> list[dict[str, Any]]:
    """The arguments of every block beside its input; UserError if some of them depend on the text."""
    one, two = (_recorded_arguments(model, tokens.expand(number, -1)) for number in (1, 2))
    return [
        {name: _of_any_batch(name, value, other[name]) for name, value in arguments.items()}
        for arguments, other in zip(one, two, strict=True)
    ]


def _recorded_arguments(model: nn.Module, tokens: Int[Tensor, "batch tokens"]) -> list[dict[str, Any]]:
    """Runs a model with blocks that pass their input on, and returns what they were called with beside it."""
    recorded: list[dict[str, Any]] = []

    def passing_on(block: nn.Module) -> Callable[..., Any]:
        bind, as_tuple = signature(block.forward).bind, family_of(block).returns_tuple

        def record(*positional: Any, **keywords: Any) -> Any:
            hidden, *others = bind(*positional, **keywords).arguments.items()
            arguments = dict(others)
            recorded.append({**arguments.pop("kwargs", {}), **arguments})
            return (hidden[1], None) if as_tuple else hidden[1]

        return record

    with ExitStack() as stack:
        for block in blocks(model):
            stack.enter_context(forward_replaced(block, passing_on(block)))
        backbone(model)(input_ids=tokens, use_cache=False)
    if len(recorded) != len(blocks(model)):
        raise UserError(f"{type(model).__name__} calls its {len(blocks(model))} blocks {len(recorded)} times")
    return recorded


def _of_any_batch(name: str, one: Any, two: Any) -> Any:
    """An argument for a batch of any size, from those for one sequence and for two."""
    if isinstance(one, tuple):
        return tuple(_of_any_batch(name, *pair) for pair in zip(one, two, strict=True))
    if isinstance(one, Tensor):
        if one.shape == two.shape:
            return one
        if name in OF_POSITIONS and two.shape == (2 * len(one), *one.shape[1:]):
            return PerSequence(one)
    elif not isinstance(one, MutableMapping):
        return one
    raise UserError(f"its blocks are called with {name}, which differs from text to text")


def for_batch(value: Any, size: int) -> Any:
    """An argument of a block for a batch of a given size."""
    match value:
        case PerSequence(part) if len(part) == 1:
            return part.expand(size, *part.shape[1:])
        case PerSequence(part):
            return part.repeat(size, *[1] * (part.ndim - 1))
        case tuple():
            return tuple(for_batch(part, size) for part in value)
        case _:
            return value
