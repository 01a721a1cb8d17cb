"""Mix'n'Match: one checkpoint, another slice in every block (MatQuant, Section 3.2).

Given a budget in bits, how many blocks get int2, int4 and int8, and which?  The paper leaves the first question open
and answers the second with four layouts, of which the pyramid (int2 at both ends, int8 in the middle) does best.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import assert_never

from matquant.errors import UserError
from matquant.notation import MAX_BITS, MIXED_WIDTHS, Layout, Plan, Slice


def slices_of(plan: Plan, layers: Iterable[str]) -> dict[str, Slice]:
    """The slice that a plan reads each named layer at, such as {"model.layers.0.mlp.up_proj": int2, ...}."""
    names = list(layers)
    if plan.layers is not None:
        return _listed(plan, names)
    if plan.strategy is not None:
        raise ValueError(f"the widths of {plan} have to be searched for before they are read")
    if plan.layout is None or plan.budget is None:
        assert plan.default is not None
        return dict.fromkeys(names, plan.default)
    numbers = sorted({block_number(name) for name in names})
    widths = dict(zip(numbers, arrange(plan.layout, counts(plan.budget, len(numbers))), strict=True))
    return {name: _slice(widths[block_number(name)], plan) for name in names}


def _listed(plan: Plan, names: Sequence[str]) -> dict[str, Slice]:
    listed = dict(plan.layers or ())
    if odd := sorted(listed.keys() ^ set(names)):
        raise UserError(
            f"plan {plan} has {len(listed)} layers, the checkpoint {len(names)}, and {odd[0]} is in only one of them; "
            "give a plan with every quantized layer of this checkpoint"
        )
    return {name: listed[name] for name in names}


def counts(budget: float, num_blocks: int, widths: Sequence[int] = MIXED_WIDTHS) -> dict[int, int]:
    """The number of blocks of each width, for an average as close to the budget as whole blocks allow.

    Of two averages that are equally close, one above and one below, the lower is taken.  Of counts with the same
    average the one nearest to equal shares is taken, so that all three widths take part where the budget is wide enough
    (of 30 blocks none is wide at 2.5 bits, one at 3, six at 4).
    """
    narrow, middle, wide = widths

    def order(wide_blocks: int, middle_blocks: int) -> tuple[float, int, int]:
        narrow_blocks = num_blocks - wide_blocks - middle_blocks
        total = narrow * narrow_blocks + middle * middle_blocks + wide * wide_blocks
        distance = round(abs(total - budget * num_blocks), 9)
        return distance, total, wide_blocks**2 + middle_blocks**2 + narrow_blocks**2

    choices = ((w, m) for w in range(num_blocks + 1) for m in range(num_blocks + 1 - w))
    wide_blocks, middle_blocks = min(choices, key=lambda choice: order(*choice))
    return {narrow: num_blocks - wide_blocks - middle_blocks, middle: middle_blocks, wide: wide_blocks}


def arrange(layout: Layout, counted: dict[int, int]) -> list[int]:
    """The width of every block, first to last.

    `increasing` goes from int2 to int8, `decreasing` back; `pyramid` has int2 at both ends and int8 in the middle,
    `reverse_pyramid` the other way round.
    """
    ascending = [width for width in sorted(counted) for _ in range(counted[width])]
    match layout:
        case "increasing":
            return ascending
        case "decreasing":
            return ascending[::-1]
        case "pyramid":
            return _ends_first(ascending)
        case "reverse_pyramid":
            return _ends_first(ascending[::-1])
        case _:
            assert_never(layout)


def _ends_first(widths: Sequence[int]) -> list[int]:
    """Deals widths out from the two ends inwards: the first two to the ends, the last to the middle."""
    return [*widths[::2], *widths[1::2][::-1]]


def _slice(width: int, plan: Plan) -> Slice:
    # The mixed widths end at the whole parent, which has no overflow bucket and nothing to round.
    return Slice(width, plan.extra_precision, plan.rule) if width < MAX_BITS else Slice(width)


def block_number(name: str) -> int:
    """The number of the transformer block that a layer's name puts it in."""
    found = re.search(r"\.(\d+)\.", name)
    assert found is not None, name
    return int(found[1])
