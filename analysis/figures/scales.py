"""Axes of figures: scales and their ticks, values far off that are clipped, and markers that would hide each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from analysis.figures.style import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from numpy.typing import ArrayLike

    from analysis.figures.style import Style

FAR_OFF = 2.2
"""A log perplexity that is so many times the best one is of a model that has collapsed."""

ROOM = 1.19
"""The factor of bits that an axis has beyond its first and last marker: markers stand beside their places, too."""

STEP = 4.4
"""The points between markers that stand side by side."""

MOST = 8
"""The steps that a row of markers may go to each side of its place."""


class Points(NamedTuple):
    """The places of a row of markers, in the units of the axes."""

    x: np.ndarray
    y: np.ndarray


def bits_axis(axes: Axes, bits: pd.Series, label: str = "effective bits per quantized weight") -> None:
    """A logarithmic axis: from 8 to 4 bits is the same step in size as from 4 to 2."""
    low, high = (bits.min() / ROOM, bits.max() * ROOM) if len(bits) else (2 / ROOM, 8 * ROOM)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    plain_ticks(axes.xaxis, [width for width in (1, 2, 3, 4, 6, 8, 12, 16) if low <= width <= high])
    axes.set_xlabel(label)


def value_axis(axes: Axes, values: pd.Series, *, nats: bool) -> None:
    """Percent as they are; nats on a logarithmic axis where int2 would press other widths into a line."""
    if values.empty:
        say(axes, "no results yet")
        plain_ticks(axes.yaxis, [])
    elif nats and 0 < 1.6 * values.min() < values.max():
        wide = (values.max() / values.min()) ** 0.03  # divergences span decades
        low, high = values.min() / max(1.06, wide), values.max() * max(1.08, wide)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        plain_ticks(axes.yaxis, readable_ticks(low, high))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def limit(axes: Axes, values: Sequence[float], off: Sequence[float] = ()) -> None:
    """The limits around what is in view, with room at the top for the arrows at the places `off`.

    Lines may run out of them, to what is far off.
    """
    if not len(values):
        return
    above = min(0.45, 0.08 * max((list(off).count(place) for place in off), default=0))
    if axes.get_yscale() == "linear":
        low, high = min(values), max(values)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room + (high - low) * above)
    elif above:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** above)


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


# --- values far off ---------------------------------------------------------------------------------------------------


def far_off(nats: ArrayLike) -> np.ndarray:
    """The collapsed ones among log perplexities, as a mask: an axis with them would flatten all others.

    None if that were most of them: then an axis without them would show too little.
    """
    values = np.asarray(nats, dtype=float)
    known = values[~np.isnan(values)]
    off = values > FAR_OFF * (known.min() if len(known) else np.nan)
    return off if 2 * off.sum() <= len(known) else np.zeros(len(values), dtype=bool)


def point_off(axes: Axes, off: Sequence[tuple[float, float, Style]]) -> None:
    """An arrow at the upper edge of a panel for each (place, value) above it, with the value; the largest first."""
    heights: dict[float, int] = {}
    for place, value, style in sorted(off, key=lambda one: -one[1]):
        near = next((other for other in heights if abs(other - place) < 0.04 * place), place)
        row = heights.setdefault(near, 0)
        heights[near] += 1
        look = {"color": style.outline, "fontsize": 6.5, "va": "top"}
        where = {"xycoords": ("data", "axes fraction"), "xytext": (-2, -8 * row), "textcoords": "offset points"}
        axes.annotate(f"↑ {value:.3g}", (near, 1.0), **where, **look)


# --- markers that would hide each other -------------------------------------------------------------------------------


def side_by_side(axes: Axes, rows: Mapping[str, Points]) -> dict[str, float]:
    """The points to the right that each row of markers is moved by, so that none hides one of another row.

    The limits of the axes have to be set; a row that is in nobody's way stays at its place.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    dpi = figure.dpi
    placed: list[np.ndarray] = []
    moved = {}
    for name, points in rows.items():
        places = axes.transData.transform(np.column_stack([points.x, points.y])) * 72 / dpi
        steps = sorted(range(-MOST, MOST + 1), key=abs)
        free = {step: _nearest(places + np.array([step * STEP, 0]), placed) for step in steps}
        step = next((step for step in steps if free[step] >= 1), max(steps, key=lambda step: free[step]))
        placed.append(places + np.array([step * STEP, 0]))
        moved[name] = step * STEP
    return moved


def _nearest(places: np.ndarray, placed: Sequence[np.ndarray]) -> float:
    """The distance to the nearest marker that is there, in steps."""
    if not placed or not len(places):
        return float("inf")
    others = np.concatenate(placed)
    return float((np.abs(places[:, None, :] - others[None, :, :]).max(axis=2) / STEP).min(initial=np.inf)) + 1e-6


def moved_right(axes: Axes, points: float) -> dict[str, Any]:
    """Keywords of what is drawn so many points to the right of its place in the data."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return {"transform": axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)}
