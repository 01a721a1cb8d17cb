"""The choices of one checkpoint: units of layers that share a width, and the cost of each unit at every width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matquant.codes.extra_precision import overflow_share
from matquant.codes.layouts import block_number
from matquant.codes.nested import NestedWeight
from matquant.models.layers.experts import of_all_experts
from matquant.models.layers.families import input_names
from matquant.notation import EQ_6, Rule, Slice
from matquant.search.request import Granularity
from matquant.search.strategies import Choices

WIDTHS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Space:
    """The choices of one checkpoint, and the layers of each unit."""

    choices: Choices
    members: Mapping[str, Sequence[str]]
    parts: Mapping[int, Slice]
    """The slice that each width is read at: with its overflow bucket where the codes were trained with it."""

    def slices(self, levels: Sequence[int]) -> dict[str, Slice]:
        """The slice of every layer under an assignment."""
        named = self.choices.named(levels)
        return {name: self.parts[bits] for unit, bits in named.items() for name in self.members[unit]}


def space_of(
    layers: Mapping[str, NestedWeight],
    *,
    budget: float,
    granularity: Granularity,
    extra_precision: bool,
    rule: Rule = EQ_6,
) -> Space:
    """Units of layers with their cost at every width their parent contains; UserError for a budget out of reach."""
    parent_bits = min(nested.parent_bits for nested in layers.values())
    widths = tuple(width for width in WIDTHS if width <= parent_bits)
    inputs = input_names(layers)
    members: dict[str, list[str]] = {}
    for name in layers:
        # The experts of a block are one unit: a width for each of them would be more choices than text can tell apart.
        unit = f"block {block_number(name)}" if granularity == "block" else of_all_experts(inputs[name])
        members.setdefault(unit, []).append(name)

    parts = {width: Slice(width, extra_precision, rule) if width < parent_bits else Slice(width) for width in widths}

    def cost(names: Sequence[str], part: Slice) -> float:
        return sum(layers[name].codes.numel() * (part.bits + overflow_share(layers[name], part)) for name in names)

    choices = Choices(
        units=tuple(members),
        blocks=tuple(block_number(names[0]) for names in members.values()),
        widths=widths,
        costs=tuple(tuple(cost(names, part) for part in parts.values()) for names in members.values()),
        num_weights=sum(nested.codes.numel() for nested in layers.values()),
        budget=budget,
    )
    return Space(choices, members, parts)
