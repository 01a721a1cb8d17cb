"""The points of a figure in words and numbers: what a page says when one points at a marker, and the figure as CSV.

A drawing function calls `tell` beside what it draws; nothing is drawn by that, and the look of a figure is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

SVG_DPI = 72
MARGIN = 3
"""The points of print by which a marker may stand outside of its axes and still be pointed at."""


class Told(Artist):
    """The facts of points, where they are drawn, and words for those that can be pointed at; draws nothing."""

    def __init__(self, x: Any, y: Any, facts: pd.DataFrame, words: Sequence[str], aside: Any = 0.0) -> None:
        super().__init__()
        self.facts, self.words, self.aside = facts, words, np.asarray(aside, dtype=float)
        self.x, self.y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        self.set_in_layout(False)

    def draw(self, renderer: RendererBase) -> None:
        """Nothing: the marker of each point is drawn by others."""


class Point(NamedTuple):
    """A place in the SVG of a figure, in its own units, and what is said there."""

    x: float
    y: float
    words: str


def tell(
    axes: Axes,
    x: Any,
    y: Any,
    facts: pd.DataFrame,
    words: Sequence[str] = (),
    transform: Transform | None = None,
    *,
    aside: Any = 0.0,
) -> None:
    """Adds the facts of points at (x, y) to the data of a figure.

    `words`: a text for each point, if it can be pointed at; lines are divided by newlines.  `aside`: the points (of an
    inch) to the right by which markers were moved, so that none hides another; they are pointed at where they are.
    """
    told = Told(x, y, facts, words, aside)
    if transform is not None:
        told.set_transform(transform)
    axes.add_artist(told)


def data_of(figure: Figure) -> pd.DataFrame:
    """All facts of a figure, in the order in which they were told; those told in two panels are there once."""
    facts = [told.facts for told in _all_told(figure) if len(told.facts)]
    return pd.concat(facts, ignore_index=True).drop_duplicates() if facts else pd.DataFrame()


def points_of(figure: Figure) -> list[Point]:
    """The points of a figure that has been laid out; those outside of their axes are left out."""
    height = SVG_DPI * figure.get_figheight()
    found = []
    for told in _all_told(figure):
        if not len(told.words):
            continue
        assert told.axes is not None
        scale = SVG_DPI / figure.dpi
        places = scale * told.get_transform().transform(np.column_stack([told.x, told.y]))
        places[:, 0] += told.aside * SVG_DPI / 72
        box = scale * told.axes.bbox.get_points()
        seen = ((places >= box[0] - MARGIN) & (places <= box[1] + MARGIN)).all(axis=1)
        for (x, y), words, is_seen in zip(places, told.words, seen, strict=True):
            if is_seen:
                found.append(Point(float(x), height - float(y), words))
    return found


def _all_told(figure: Figure) -> list[Told]:
    return [child for axes in figure.axes for child in axes.findobj(Told) if isinstance(child, Told)]


def number_text(value: float, stderr: float) -> str:
    """`46.67 ± 4.2`; without the error where there is none."""
    return f"{value:.4g}" + ("" if math.isnan(stderr) else f" ± {stderr:.2g}")
