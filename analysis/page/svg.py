"""Figures as elements of a page: the SVG in the page's colours, and the points that can be pointed at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from markupsafe import Markup

from analysis.figures.style import INK, PAPER, QUIET
from analysis.page.parts import Download, Drawn, Picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from analysis.figures.gallery import Plot
    from analysis.figures.told import Point

THEME = {INK: "ink", PAPER: "paper", QUIET: "quiet"}


def picture_of(plot: Plot, drawn: Sequence[tuple[str, Sequence[Point]]], downloads: Sequence[Download] = ()) -> Picture:
    """A figure with its words once, however often it is drawn; `drawn`: SVG and points, widest first."""
    numbers: dict[str, int] = {}
    shown = []
    for place, (svg, points) in enumerate(drawn):
        element = inline_svg(svg, plot.title, THEME, f"{plot.name}{place}-")
        shown.append(Drawn(element, [(x, y, numbers.setdefault(words, len(numbers))) for x, y, words in points]))
    return Picture(plot.name, plot.title, plot.note, shown, list(numbers), downloads)


def inline_svg(svg: str, label: str, colours: Mapping[str, str], prefix: str) -> Markup:
    """An SVG file as an element of a page: its colours are those of the page's theme, its ids begin with `prefix`.

    Without that, a figure would look for its clip paths in the first figure of the page, which may be hidden.
    """
    element = svg[svg.index("<svg") :].removeprefix("<svg")
    for colour, variable in colours.items():
        element = element.replace(colour, f"var(--{variable})")
    element = re.sub(r'(\bid="|href="#|url\(#)', lambda found: found[1] + prefix, element)
    return Markup('<svg role="img" aria-label="{}"{}').format(label, Markup(element))
