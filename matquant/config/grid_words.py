"""A cell's grid in a few words, for every table: where its codes lie, and how the ends of a group were chosen.

groups of 64, zero on int4's step, headroom int3
searched start, reach 1.5
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from matquant.config.cell import (
    ForeignBase,
    ForeignModel,
    GPTQBase,
    MinMaxBase,
    NoBase,
    OmniQuantBase,
    QATBase,
    SearchBase,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matquant.config.cell import Cell, GridSpec, Importance

ZEROS = {
    "real": "real zero",
    "rounded": "rounded zero",
    "aligned_int4": "zero on int4's step",
    "aligned_int3": "zero on int3's step",
    "aligned_int2": "zero on int2's step",
}
COVERED = (
    *("model.grid", "model.unquantized"),
    *("grid.group_size", "grid.symmetric", "grid.zero", "grid.headroom", "grid.scale_dtype"),
    *(
        "base.clipping",
        "base.clipping_init",
        "base.clipping_reach",
        "base.importance",
        "base.train_scales",
        "base.slice_clamp",
    ),
)
"""The settings that these words tell apart, where they take effect."""


def grid_words(cell: Cell) -> str:
    """`groups of 64, zero on int4's step, headroom int3`; empty for a cell that is not quantized.

    Of a foreign model the words of its own configuration, and the matrices that it leaves in 16 bits.
    """
    if isinstance(cell.model, ForeignModel):
        left = f"{cell.model.unquantized} in 16 bits" if cell.model.unquantized else ""
        return ", ".join(filter(None, (cell.model.grid, left)))
    return "" if cell.grid is None or cell.base.kind == "none" else ", ".join(_of_grid(cell.grid))


def ends_words(cell: Cell) -> str:
    """`searched start, reach 1.5`; empty where a grid ends at the extreme weights, or close to them at the start."""
    return ", ".join(_of_ends(cell))


def all_words(cell: Cell) -> str:
    """Both together."""
    return ", ".join(filter(None, (grid_words(cell), ends_words(cell))))


def _of_grid(grid: GridSpec) -> Iterator[str]:
    yield "per channel" if grid.group_size is None else f"groups of {grid.group_size}"
    yield "symmetric" if grid.symmetric else ZEROS[grid.zero]
    if grid.headroom != "full":
        yield f"headroom {grid.headroom}"
    if grid.scale_dtype != "float32":
        yield f"{grid.scale_dtype} scales"


def _of_ends(cell: Cell) -> Iterator[str]:
    match base := cell.base:
        case NoBase() | ForeignBase() | MinMaxBase():
            return
        case SearchBase():
            yield from _searched("ends", base.importance, base.clipping_reach)
        case GPTQBase():
            if base.clipping == "search":
                yield from _searched("range", base.importance, base.clipping_reach)
        case OmniQuantBase():
            yield from _learned(base, base.importance)
            yield from _clamped(base)
        case QATBase():
            if base.train_scales:
                yield "trained ends"
                yield from _learned(base, "plain")
            elif base.clipping_init == "search":
                yield from _searched("ends", "plain", base.clipping_reach)
            yield from _clamped(base)
        case _:
            assert_never(base)


def _clamped(base: OmniQuantBase | QATBase) -> Iterator[str]:
    if base.slice_clamp == "value":
        yield "slices clamped by value"


def _searched(what: str, importance: Importance, reach: float) -> Iterator[str]:
    yield f"searched {what}{' by inputs' if importance == 'inputs' else ''}"
    yield f"reach {reach:g}"


def _learned(base: OmniQuantBase | QATBase, importance: Importance) -> Iterator[str]:
    if base.clipping_init == "search":
        yield f"searched start{' by inputs' if importance == 'inputs' else ''}"
    elif base.clipping_init != type(base).model_fields["clipping_init"].default:
        yield f"start {base.clipping_init:g}"
    if base.clipping_reach != 1:
        yield f"reach {base.clipping_reach:g}"
