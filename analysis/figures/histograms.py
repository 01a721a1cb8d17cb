"""Figures 1c and 4: what MatQuant does to the codes. Left every int8 code, right the buckets they fall into at int2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from analysis.figures import legends
from analysis.figures.style import FULL_LINE, INK, PAPER, QUIET, RC, TEXT, columns_of, new_figure, say, styles_of
from analysis.figures.told import tell
from analysis.frame.code_counts import bucket_shares
from matquant.notation import Slice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.figures.style import Style
    from analysis.frame.code_counts import Codes

MAX_CELLS = 4
NARROW = Slice(2)


def histogram_figure(
    panels: Mapping[str, Mapping[str, Codes]],
    *,
    to: Slice = NARROW,
    width: float = TEXT,
    styles: Mapping[str, Style] | None = None,
) -> Figure:
    """A row of two panels for each title, with the codes of each labelled cell: without MatQuant first."""
    across, rows = columns_of(width), max(1, len(panels))
    ratios = {"width_ratios": [2.2, 1]} if across == 2 else {}
    figure, grid = new_figure(width, 1.75 * rows * (2 // across) + 0.3, rows * (2 // across), across, **ratios)
    pairs = grid.reshape(rows, 2)
    with matplotlib.rc_context(RC):
        if not panels:
            for axes in grid.flat:
                say(axes, "no codes recorded yet")
        labels = list(dict.fromkeys(label for cells in panels.values() for label in cells))
        found = styles or styles_of(labels)
        looks = {label: found[label] for label in labels}
        for (left, right), (title, cells) in zip(pairs, panels.items(), strict=False):
            _draw_codes(left, cells, looks, to)
            _draw_buckets(right, cells, looks, to)
            left.set_title(title)
        handles = [Patch(**_area(style), label=style.name) for style in looks.values()]
        if handles:
            hatched = {"facecolor": PAPER, "edgecolor": QUIET, "hatch": "//////", "linewidth": 0.6}
            clamped = Patch(**hatched, label="clamped into the last")
            legends.legend_below(figure, [*handles, clamped])
    return figure


def _area(style: Style) -> dict[str, Any]:
    return {"facecolor": style.colour, "edgecolor": style.outline, "linewidth": 0.6}


def _draw_codes(axes: Axes, cells: Mapping[str, Codes], looks: Mapping[str, Style], to: Slice) -> None:
    """The share of every code; the ends, where clipping gathers codes, are written as numbers where they do not fit."""
    widest = max(len(codes.histogram) for codes in cells.values())
    inner = max((100 * codes.shares[1:-1].max() for codes in cells.values() if len(codes.shares) > 2), default=1.0)
    axes.set_ylim(0, 1.18 * inner)
    axes.set_xlim(-3, widest + 2)
    for place, (label, codes) in enumerate(cells.items()):
        shares = 100 * codes.shares
        axes.stairs(shares, np.arange(len(shares) + 1) - 0.5, color=looks[label].colour, linewidth=0.8, baseline=None)
        axes.axvline(codes.mean, color=looks[label].colour, linewidth=0.9, linestyle=(0, (4, 2)))
        for code, align, shift in ((0, "left", 4), (len(shares) - 1, "right", -4)):
            if shares[code] > 1.18 * inner:
                words = f"{shares[code]:.1f} % at {code}"
                where = (code + shift, 1.17 * inner - 0.1 * inner * place)
                axes.text(*where, words, ha=align, va="top", color=looks[label].colour, fontsize=6.5)
    step = widest >> to.bits
    for edge in range(1, 1 << to.bits):
        axes.axvline(edge * step - step / 2 - 0.5, **{**FULL_LINE, "linewidth": 0.5}, zorder=0)
    axes.axvline(widest - step / 2 - 0.5, **{**FULL_LINE, "linewidth": 0.5, "linestyle": ":"}, zorder=0)
    axes.set_xticks([0, *(step * edge for edge in range(1, 1 << to.bits)), widest - 1])
    axes.set_xlabel(f"int{(widest - 1).bit_length()} code (dashed: mean)")
    axes.set_ylabel("% of weights")
    for name, codes in cells.items():
        shares = 100 * codes.shares
        facts = pd.DataFrame(
            {"row": name, "width": f"int{(widest - 1).bit_length()}", "code": range(len(shares)), "percent": shares}
        )
        words = [f"{name}\ncode {code}: {share:.3g} % of weights" for code, share in enumerate(shares)]
        tell(axes, facts["code"], np.minimum(shares, 1.18 * inner), facts, words)


def _draw_buckets(axes: Axes, cells: Mapping[str, Codes], looks: Mapping[str, Style], to: Slice) -> None:
    """The share of every bucket of the slice; overflow is clamped, and hatched on top of the last."""
    width = 0.8 / len(cells)
    for place, (label, codes) in enumerate(cells.items()):
        *inside, overflow = 100 * bucket_shares(codes, to)
        places = np.arange(len(inside)) + (place - (len(cells) - 1) / 2) * width
        axes.bar(places, inside, width * 0.92, **_area(looks[label]))
        axes.bar(
            *(places[-1], overflow, width * 0.92),
            bottom=inside[-1],
            facecolor=PAPER,
            edgecolor=looks[label].colour,
            hatch="//////",
            linewidth=0.6,
        )
        heights: Sequence[float] = [*inside[:-1], inside[-1] + overflow]
        for x, height in zip(places, heights, strict=True):
            axes.text(
                x,
                height + 0.6,
                f"{height:.0f}",
                ha="center",
                va="bottom",
                fontsize=6 if len(cells) < 3 else 5.5,
                color=INK,
            )
        facts = pd.DataFrame({"row": label, "width": str(to), "code": range(len(heights)), "percent": heights})
        facts["clamped"] = [0.0] * (len(heights) - 1) + [overflow]
        words = [f"{label}\nbucket {bucket}: {height:.3g} % of weights" for bucket, height in enumerate(heights)]
        words[-1] += f",\n{overflow:.3g} % clamped into it"
        tell(axes, places, heights, facts, words)
    axes.margins(y=0.12)
    axes.set_xticks(range(1 << to.bits))
    axes.set_xlabel(f"{to} bucket")
    axes.set_ylabel("% of weights")
