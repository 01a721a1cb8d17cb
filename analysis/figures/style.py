"""The look of all figures: type, sizes, colours that stay apart for colour-blind readers, ticks, and files.

A figure is as wide as a column (3.25 in) or the text (6.75 in) of a two-column paper, so its type is never scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, PAPER, QUIET = "#1b1b1b", "#fefefe", "#8c8c8c"
"""Colours of text, background and secondary marks; a page may replace them to follow its own theme."""

COLUMN, TEXT = 3.25, 6.75
"""The width in inches of a column, and of the text, of a two-column paper."""

SCREEN_DPI = 150
"""The resolution of a figure on a screen."""

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "matquant",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Style:
    """The colour and marker of a method, in every figure."""

    colour: str
    marker: str


METHOD_STYLES = {
    "Sliced": Style("#D55E00", "v"),
    "Baseline": Style("#0072B2", "s"),
    "Single Precision": Style("#E69F00", "D"),
    "MatQuant": Style("#009E73", "o"),
}
OTHER_STYLES = (Style("#CC79A7", "^"), Style("#56B4E9", "P"), Style(INK, "X"))
"""Colours that stay apart for colour-blind readers (Okabe and Ito, 2008), and a marker of its own with each."""

FULL_LINE = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (4, 2))}
CHANCE_LINE = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (1, 2))}


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its grid of axes; `options` go to `Figure.subplots`."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05), facecolor=PAPER)
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def columns_of(width: float) -> int:
    """Panels stand side by side where they have the width of the text, else below one another."""
    return 2 if width > COLUMN else 1


def marker(style: Style, *, hollow: bool = False, size: float = 4.6) -> dict[str, Any]:
    """Keywords of a line that is only markers; hollow ones stand for interpolated widths."""
    face = PAPER if hollow else style.colour
    look = {"marker": style.marker, "markersize": size, "markerfacecolor": face, "markeredgecolor": style.colour}
    return {**look, "markeredgewidth": 1.0, "linestyle": "none"}


def bits_axis(axes: Axes, bits: pd.Series, label: str = "effective bits per quantized weight") -> None:
    """A logarithmic axis: from 8 to 4 bits is the same step in size as from 4 to 2."""
    low, high = (bits.min() / 1.13, bits.max() * 1.13) if len(bits) else (2 / 1.13, 8 * 1.13)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    plain_ticks(axes.xaxis, [width for width in (1, 2, 3, 4, 6, 8, 12, 16) if low <= width <= high])
    axes.set_xlabel(label)


def value_axis(axes: Axes, values: pd.Series, *, nats: bool) -> None:
    """Percent as they are; nats on a logarithmic axis where int2 would press other widths into a line."""
    if values.empty:
        say(axes, "no results yet")
        plain_ticks(axes.yaxis, [])
    elif nats and 0 < 2 * values.min() < values.max():
        wide = (values.max() / values.min()) ** 0.03  # divergences span decades
        low, high = values.min() / max(1.06, wide), values.max() * max(1.08, wide)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        plain_ticks(axes.yaxis, readable_ticks(low, high))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def say(axes: Axes, text: str) -> None:
    """Writes words in the place of a missing curve."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)


def readable_ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high] that keep a distance on a logarithmic axis: 3.5, 4, 5, 6, 8, 10, 15."""
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9) if high < 1000 * low else (1,)
    candidates = [step * 10.0**power for power in range(-9, 4) for step in steps]
    ticks: list[float] = []
    for tick in candidates:
        if low <= tick <= high and (not ticks or np.log(tick / ticks[-1]) > 0.07 * np.log(high / low)):
            ticks.append(tick)
    return ticks


def plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def save_figure(figure: Figure, path: Path | IO[bytes], form: str, dpi: int = 300) -> None:
    """Writes `svg`, `pdf` or `png`, the same bytes for the same figure: no date, no random ids."""
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with matplotlib.rc_context(RC):
        _take_dollars_as_they_are(figure)
        if figure.get_layout_engine() is not None:
            # Laid out once: every further form of the figure takes its places from here, in half the time.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(path, format=form, dpi=dpi, metadata=dates[form])


def _take_dollars_as_they_are(figure: Figure) -> None:
    """A name with two dollar signs is a name and no formula; formulas are only in the numbers of a logarithmic axis."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text() and "mathdefault" not in text.get_text():
            text.set_parse_math(False)
