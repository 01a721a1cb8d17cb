"""A heat map of a plan: the width of every layer, blocks from left to right."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch

from analysis.figures.style import PAPER, QUIET, RC, TEXT, ink_on, new_figure, say, slice_style
from analysis.figures.told import tell
from matquant.codes.layouts import slices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from matquant.notation import Plan

ROOM_FOR_A_NUMBER = 0.13
"""The inches that a block needs to have its bits written into it."""

BLOCK = re.compile(r"\.(\d+)\.(.+)")


def grid_of(plan: Plan, layers: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The kinds of layers (`mlp.up_proj`) and the bits of each in every block; NaN where a block has no such layer."""
    slices = slices_of(plan, layers)
    places = [(match[2], int(match[1])) for match in map(BLOCK.search, layers) if match is not None]
    kinds = list(dict.fromkeys(kind for kind, _ in places))
    bits = np.full((len(kinds), 1 + max((block for _, block in places), default=0)), np.nan)
    for name in layers:
        match = BLOCK.search(name)
        if match is not None:
            bits[kinds.index(match[2]), int(match[1])] = slices[name].bits
    return kinds, bits


def plan_figure(plans: Mapping[str, Plan], layers: Sequence[str], *, width: float = TEXT) -> Figure:
    """A map for each named plan, over the quantized layers of one model."""
    grids = {name: grid_of(plan, layers) for name, plan in plans.items()} if layers else {}
    lines = sum(len(kinds) for kinds, _ in grids.values())
    ratios = [max(1, len(kinds)) for kinds, _ in grids.values()] or [1]
    height = 0.17 * lines + 0.36 * max(1, len(grids)) + 0.5
    figure, axes_of = new_figure(width, height, max(1, len(grids)), sharex=True, height_ratios=ratios)
    with matplotlib.rc_context(RC):
        if not grids:
            say(axes_of[0, 0], "no layers recorded yet")
        for (axes,), (name, (kinds, bits)) in zip(axes_of, grids.items(), strict=False):
            _draw(axes, kinds, bits, with_numbers=width / bits.shape[1] > ROOM_FOR_A_NUMBER)
            axes.set_title(f"{name}: {np.nanmean(bits):.2f} bits a layer" if np.isfinite(bits).any() else name)
            _tell(axes, name, kinds, bits)
        axes_of[-1, 0].set_xlabel("block")
        used = {int(width) for _, bits in grids.values() for width in np.unique(bits[np.isfinite(bits)])}
        edge = {"edgecolor": QUIET, "linewidth": 0.4}
        handles = [Patch(facecolor=slice_style(bits).colour, label=f"int{bits}", **edge) for bits in sorted(used)]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw(axes: Axes, kinds: Sequence[str], bits: np.ndarray, *, with_numbers: bool) -> None:
    colours = ListedColormap([slice_style(width).colour for width in range(1, 9)])
    norm = BoundaryNorm(np.arange(0.5, 9.5), colours.N)
    axes.pcolormesh(bits, cmap=colours, norm=norm, edgecolors=PAPER, linewidth=0.8)
    for (row, column), width in np.ndenumerate(bits):
        if np.isfinite(width) and with_numbers:
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{width:.0f}",
                ha="center",
                va="center",
                fontsize=5.5,
                color=ink_on(int(width)),
            )
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds)
    num_blocks = bits.shape[1]
    ticks = np.arange(0, num_blocks, max(1, num_blocks // 10))
    axes.set_xticks(ticks + 0.5, [str(tick) for tick in ticks])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _tell(axes: Axes, plan: str, kinds: Sequence[str], bits: np.ndarray) -> None:
    """The width of every layer of a plan, at the middle of its field."""
    layers = [(kinds[row], block, width) for (row, block), width in np.ndenumerate(bits) if np.isfinite(width)]
    facts = pd.DataFrame(layers, columns=["kind", "block", "bits"]).assign(plan=plan)
    rows, blocks = np.nonzero(np.isfinite(bits))
    words = [f"{plan}\nblock {block}, {kind}: int{width:.0f}" for kind, block, width in layers]
    tell(axes, blocks + 0.5, rows + 0.5, facts[["plan", "kind", "block", "bits"]], words)
