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
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from analysis.figures.style import Style

FAR_OFF = 2.2
"""A log perplexity that is so many times the best one is of a model that has collapsed."""

ROOM = 1.19
"""The factor of bits that an axis has beyond its first and last marker: markers stand beside their places, too."""

STEP = 4.4
"""The points between markers that stand side by side."""

LOWER = 0.75
"""The height of a panel, of what it has before its legend is laid out."""

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
    widths = [width for width in (1, 2, 3, 4, 6, 8, 12, 16) if low <= width <= high]
    plain_ticks(axes.xaxis, widths or readable_ticks(low, high))
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


def side_by_side(axes: Axes, rows: Mapping[str, Points]) -> dict[str, np.ndarray]:
    """The points to the right that each marker is moved by, by row, so that none hides another.

    The limits of the axes have to be set; a marker that is in nobody's way stays at its place.
    """
    dpi = _figure(axes).dpi
    placed = np.zeros((0, 2))
    moved = {}
    steps = STEP * np.array(sorted(range(-MOST, MOST + 1), key=abs))
    for name, points in rows.items():
        places = axes.transData.transform(np.column_stack([points.x, points.y])) * 72 / dpi
        places[:, 1] *= LOWER
        moved[name] = np.zeros(len(places))
        for number, place in enumerate(places):
            tried = place + np.column_stack([steps, np.zeros(len(steps))])
            nearest = np.abs(tried[:, None] - placed[None]).max(axis=2).min(axis=1, initial=np.inf)
            chosen = int(np.argmax(nearest > 0.999 * STEP)) if (nearest > 0.999 * STEP).any() else int(nearest.argmax())
            moved[name][number] = steps[chosen]
            placed = np.vstack([placed, tried[chosen]])
    return moved


def draw_markers(
    axes: Axes, points: Points, moved: np.ndarray, errors: np.ndarray, look: Mapping[str, Any], bars: Mapping[str, Any]
) -> None:
    """Markers with their errors, each moved to the right by so many points; its data stay what they are."""
    shift = _figure(axes).dpi_scale_trans
    for points_right in np.unique(moved):
        here = moved == points_right
        place: dict[str, Any] = {"transform": axes.transData + ScaledTranslation(points_right / 72, 0, shift)}
        axes.errorbar(points.x[here], points.y[here], yerr=errors[here], fmt="none", **bars, **place)
        axes.plot(points.x[here], points.y[here], **look, **place)


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure
