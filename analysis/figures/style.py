"""The style of every figure: a colour, a marker and a name for each method, wherever it is drawn; type, sizes, files.

A method's hue and marker never change.  Its algorithm (OmniQuant, QAT, ...) sets shade and filling, so that two
baselines are both blue squares and are told apart.  The colours stay apart for colour-blind readers and have contrast
on a light page and on a dark one.

A figure is as wide as a column (3.25 in) or the text (6.75 in) of a two-column paper, so its type is never scaled.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Literal

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from analysis.figures.legends import short_names
from analysis.frame.names import BASE_NAMES, WEIGHTS_NAMES, head_of, named_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

INK, PAPER, QUIET = "#1b1b1b", "#fefefe", "#8c8c8c"
"""Colours of text, background and secondary marks; a page may replace them to follow its own theme."""

COLUMN, TEXT = 3.25, 6.75
"""The width in inches of a column, and of the text, of a two-column paper."""

SCREEN_DPI = 300
"""The resolution of a figure on a screen: two dots for every point of a page that shows it at 150."""

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

Fill = Literal["full", "left", "right", "bottom", "top"]


@dataclass(frozen=True)
class Style:
    """The look of a method in every figure: `colour` of lines and areas, `edge` of its markers, shape and filling."""

    name: str
    colour: str
    marker: str
    edge: str = ""
    fill: Fill = "full"

    @property
    def outline(self) -> str:
        return self.edge or self.colour


METHODS = {
    "Sliced": Style("Sliced", "#C8480A", "v"),
    "Baseline": Style("Baseline", "#0072B2", "s"),
    "Single Precision": Style("Single Precision", "#E69815", "D"),
    "Single Precision + Extra Precision": Style("Single Precision + Extra Precision", "#9A6A14", "X"),
    "MatQuant": Style("MatQuant", "#009E73", "o"),
    "MatQuant + Extra Precision": Style("MatQuant + Extra Precision", "#4DA6FF", "P"),
    "MatQuant [": Style("MatQuant, co-distilled", "#A0508C", "h"),
    "MatQuant [ + Extra Precision": Style("MatQuant, co-distilled + Extra Precision", "#C06A9E", "H"),
    "Mix'n'Match pyramid": Style("Mix'n'Match pyramid", "#8C564B", "^"),
    "Mix'n'Match reverse pyramid": Style("Mix'n'Match reverse pyramid", "#5B7FA6", "v"),
    "Mix'n'Match increasing": Style("Mix'n'Match increasing", "#7D8B1A", ">"),
    "Mix'n'Match decreasing": Style("Mix'n'Match decreasing", "#A8518A", "<"),
    "Mix'n'Match dynamic program": Style("Mix'n'Match dynamic program", "#5A5AB0", "p"),
    "Mix'n'Match dynamic program linear": Style("Mix'n'Match dynamic program linear", "#5A5AB0", "8"),
    "Mix'n'Match evolution": Style("Mix'n'Match evolution", "#6B6B6B", "*"),
    "Mix'n'Match evolution linear": Style("Mix'n'Match evolution linear", "#6B6B6B", "h"),
    "Mix'n'Match": Style("Mix'n'Match", "#6B6B6B", "d"),
    "Searched": Style("Searched", "#6B6B6B", "X"),
    "MatGPTQ": Style("MatGPTQ", "#A0522D", "*"),
    "Any-Precision": Style("Any-Precision", "#A0522D", "P"),
    "AnyBCQ": Style("AnyBCQ", "#A0522D", "X"),
    "nested folder": Style("nested folder", "#A0522D", "o"),
    "GPTQ file": Style("GPTQ file", "#5F7A5F", "d"),
    "AWQ file": Style("AWQ file", "#5F7A5F", "8"),
    "HQQ file": Style("HQQ file", "#5F7A5F", "H"),
    "GGUF file": Style("GGUF file", "#5F7A5F", "p"),
}
"""The style of each method, by the beginning of its name; the longest that fits is meant."""

OTHER = Style("other", "#7A6F66", "^")
"""A method without a style of its own, such as a foreign format that nobody has met yet."""

SHADES = (0.0, 0.45, -0.45, 0.25, -0.25, 0.6)
"""A colour mixed with white (positive) or black, by this share."""

ALGORITHMS: Mapping[str, tuple[int, Fill]] = {
    "omniquant": (0, "full"),
    "minmax": (1, "right"),
    "qat": (2, "left"),
    "gptq": (3, "bottom"),
    "search": (4, "top"),
}
"""The place in SHADES and the filling of each algorithm; a method of any other has its own colour."""

MORE_MARKERS = "o^Ds*hPX<>dp8H"
"""The shapes that variants of one method take when all shades are taken."""

SLICES = {
    8: Style("int8", "#5F3D99", "o"),
    6: Style("int6", "#8B469E", "P"),
    4: Style("int4", "#B9568A", "s"),
    3: Style("int3", "#DE7A6E", "D"),
    2: Style("int2", "#F0A070", "v"),
}
"""The styles of widths, dark for many bits; every reader sees that order, in grey print too."""

INTERPOLATED = Style("hollow: interpolated", QUIET, "o")
FULL_LINE = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (4, 2))}
CHANCE_LINE = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (1, 2))}
FRONT_LINE = {"color": QUIET, "linewidth": 2.6, "alpha": 0.35, "solid_capstyle": "butt", "solid_joinstyle": "miter"}


def method_of(label: str) -> str:
    """The key in METHODS of a row's label; empty for a method without a style."""
    if label.startswith("MatQuant ["):
        return "MatQuant [ + Extra Precision" if "+ Extra Precision" in head_of(label) else "MatQuant ["
    return max((name for name in METHODS if label.startswith(name)), key=len, default="")


def algorithm_of(label: str) -> str:
    """The algorithm of a row's label, as a configuration calls it; empty for a foreign model's program."""
    found = [kind for kind, name in BASE_NAMES.items() if head_of(label).endswith(f" ({name})")]
    return found[0] if found else ""


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label: that of its method and algorithm; variants of both take further shades.

    No two labels have the same.  A variant of loss weights with a name has the same shade everywhere; others take
    what is free, in their order.
    """
    names = short_names(labels).names
    groups: dict[str, list[str]] = {}
    for label in names:
        groups.setdefault(method_of(label), []).append(label)
    found = {}
    for method, of_method in groups.items():
        taken: set[int] = set()
        for label in sorted(of_method, key=lambda label: (len(head_of(label)) < len(label), _variant(label))):
            algorithm = algorithm_of(label)
            own, fill = ALGORITHMS.get(algorithm, (0, "full"))
            wanted = itertools.chain([own + _variant(label) % UNNAMED], itertools.count())
            place = next(place for place in wanted if place not in taken)
            taken.add(place)
            found[label] = _shaded(METHODS.get(method, OTHER), place, fill, names[label])
    return {label: found[label] for label in names}


UNNAMED = len(WEIGHTS_NAMES) + 1


def _variant(label: str) -> int:
    """The place of named loss weights among all of these, uniform ones first; the last for any other fact."""
    fact = named_weights(label)[len(head_of(label)) :].removeprefix(", ")
    return ["uniform λ", *WEIGHTS_NAMES.values()].index(fact) if fact.endswith(" λ") else UNNAMED if fact else 0


def _shaded(own: Style, place: int, fill: Fill, name: str) -> Style:
    turn, shade = divmod(place, len(SHADES))
    others = [shape for shape in MORE_MARKERS if shape != own.marker]
    shape = own.marker if turn == 0 else others[(turn - 1) % len(others)]
    return Style(name, mixed(own.colour, SHADES[shade]), shape, edge=own.colour, fill=fill)


def mixed(colour: str, share: float) -> str:
    """A colour mixed with white, or for a negative share with black."""
    other = 1.0 if share > 0 else 0.0
    red, green, blue = (channel + (other - channel) * abs(share) for channel in to_rgb(colour))
    return to_hex((red, green, blue)) if share else colour


def slice_style(bits: int) -> Style:
    """The style of a width; one between those of the paper takes the next narrower one's colour."""
    own = SLICES.get(bits) or SLICES[max((width for width in SLICES if width <= bits), default=2)]
    return replace(own, name=f"int{bits}")


def ink_on(bits: int) -> str:
    """The colour of a number on the shade of a width; the same on a dark page, which keeps the shades."""
    return "#ffffff" if bits >= 4 else "#202020"


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
    look: dict[str, Any] = {"marker": style.marker, "markersize": size, "markeredgecolor": style.outline}
    if hollow:
        look |= {"markerfacecolor": PAPER}
    else:
        look |= {"markerfacecolor": style.colour}
        if style.fill != "full":
            look |= {"fillstyle": style.fill, "markerfacecoloralt": mixed(style.outline, 0.7)}
    return {**look, "markeredgewidth": 1.0, "linestyle": "none"}


def say(axes: Axes, text: str) -> None:
    """Writes words in the place of a missing curve."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)


def save_figure(figure: Figure, path: Path | IO[bytes], form: str, dpi: int = SCREEN_DPI) -> None:
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
