"""The pictures of docs/concepts: `python -m docs.pictures.draw` draws them again, each for light and for dark pages.

Where a picture shows a computation, it is this project's own: codes are read by `slice_codes`, layouts by `counts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.colors
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from analysis.figures.style import RC
from matquant.codes.layouts import arrange, counts
from matquant.codes.slicing import slice_codes
from matquant.notation import Slice

FOLDER = Path(__file__).parent
CODE = 155
"""The code in the first picture: 10011011."""


class Look(NamedTuple):
    """Colours of a page."""

    ink: str
    quiet: str
    wide: str
    middle: str
    narrow: str


LOOKS = {
    "light": Look("#1b1b1b", "#8c8c8c", "#cfe0f5", "#7fb2e5", "#1f6fb5"),
    "dark": Look("#e8e8e8", "#8c8c8c", "#274766", "#3f83c4", "#9bcbf7"),
}


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose one axes has a unit of an inch."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    return figure, axes


def slices(look: Look) -> Figure:
    """One code of eight bits, and what its first four and first two bits stand for."""
    figure, axes = blank(6.75, 2.5)
    for row, (bits, color) in enumerate(((8, look.wide), (4, look.middle), (2, look.narrow))):
        y = 1.72 - 0.72 * row
        value = int(slice_codes(torch.tensor([CODE]), Slice(bits), parent_bits=8))
        axes.text(0.1, y + 0.15, f"int{bits}", va="center", weight="bold")
        for place in range(8):
            kept = place < bits
            box = Rectangle((0.65 + 0.26 * place, y), 0.24, 0.3, fc=color if kept else "none", ec=look.quiet, lw=0.6)
            axes.add_patch(box)
            digit = f"{value:08b}"[place] if kept else ""
            axes.text(0.77 + 0.26 * place, y + 0.15, digit, ha="center", va="center", color=_on(color))
        axes.text(2.85, y + 0.15, f"= {value}", va="center")
        _levels(axes, y, bits, value, color, look)
    axes.text(0.65, 2.2, f"one stored code: {CODE}", color=look.ink)
    axes.text(3.55, 2.2, "the values that are left, on one scale", color=look.ink)
    return figure


def _on(color: str) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = matplotlib.colors.to_rgb(color)
    return "#1b1b1b" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "#fefefe"


def _levels(axes: Axes, y: float, bits: int, value: int, color: str, look: Look) -> None:
    """The values of a width between 0 and 255, and the one that the code is read as."""
    left, width = 3.55, 2.95
    axes.plot([left, left + width], [y + 0.05] * 2, color=look.quiet, lw=0.6)
    step = 2 ** (8 - bits)
    places = [left + width * level / 255 for level in range(0, 256, step)]
    ticks = [(x, height) for x in places for height in (y + 0.05, y + 0.2, math.nan)]  # one line with gaps
    axes.plot(*zip(*ticks, strict=True), color=look.quiet, lw=0.15 if bits == 8 else 0.8)
    x = left + width * value / 255
    axes.plot([x], [y + 0.27], marker="v", color=look.ink, markersize=5)
    axes.text(x + 0.08, y + 0.27, str(value), va="center", size=6.5)


def _box(axes: Axes, x: float, y: float, words: str, look: Look, width: float = 1.3, fill: str = "none") -> None:
    shape = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, 0.52, boxstyle=shape, fc=fill, ec=look.quiet, lw=0.9))
    color = look.ink if fill == "none" else _on(fill)
    axes.text(x + width / 2, y + 0.26, words, ha="center", va="center", color=color, linespacing=1.3)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], look: Look) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=look.quiet, lw=0.9))


def training(look: Look) -> Figure:
    """One step of training: the codes are read at every width, and the losses are summed."""
    figure, axes = blank(6.75, 2.4)
    _box(axes, 0.1, 0.94, "weights\n(trained)", look)
    _box(axes, 1.8, 0.94, "8-bit codes\non one grid", look)
    _arrow(axes, (1.42, 1.2), (1.78, 1.2), look)
    for row, (bits, share) in enumerate(((8, "0.1"), (4, "0.1"), (2, "1"))):
        y = 1.74 - 0.8 * row
        color = (look.wide, look.middle, look.narrow)[row]
        _box(axes, 3.5, y, f"read at int{bits}", look, 1.15, color)
        _arrow(axes, (3.12, 1.2), (3.48, y + 0.26), look)
        axes.text(4.98, y + 0.26, f"loss x {share}", ha="center", va="center", color=look.ink)
        _arrow(axes, (5.32, y + 0.26), (5.88, 1.2), look)
    axes.text(6.15, 1.2, "sum", ha="center", va="center", weight="bold")
    axes.text(0.1, 0.1, "the gradient of the sum goes back to the weights", color=look.quiet, size=7)
    return figure


def flow(look: Look) -> Figure:
    """The way from a configuration to a report, with the folder that each step leaves its files in."""
    figure, axes = blank(6.75, 1.75)
    steps = (
        ("choices\nbase=, bits=, ...", "conf/"),
        ("a cell\ntrained once", "runs/"),
        ("plans\nint8 ... int2", ""),
        ("results\ntasks, log pplx", "results/"),
        ("report\ntables, figures", "out/"),
    )
    for number, (words, folder) in enumerate(steps):
        x = 0.08 + 1.34 * number
        _box(axes, x, 0.72, words, look, 1.12, look.middle if number == 1 else "none")
        axes.text(x + 0.56, 0.5, folder, ha="center", va="center", family="DejaVu Sans Mono", size=7)
        if number:
            _arrow(axes, (x - 0.2, 0.98), (x - 0.02, 0.98), look)
    axes.text(
        0.08, 1.5, "every step asks the disk first: what is there is not computed again", color=look.quiet, size=7
    )
    return figure


def mixed(look: Look) -> Figure:
    """Widths by block at three bits on average: one width for all, and the paper's pyramid."""
    num_blocks = 30
    figure = Figure(figsize=(6.75, 1.9), layout="constrained")
    pyramid = arrange("pyramid", counts(3.0, num_blocks))
    colors = {2: look.narrow, 3: look.middle, 4: look.middle, 8: look.wide}
    for place, (name, widths) in enumerate((("int3", [3] * num_blocks), ("pyramid@3", pyramid)), start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.bar(range(1, num_blocks + 1), widths, color=[colors[width] for width in widths], ec=look.quiet, lw=0.4)
        axes.set(title=f"{name}: {sum(widths) / num_blocks:g} bits on average", xlabel="block", ylim=(0, 8.6))
        axes.set_yticks([0, 2, 4, 8])
        axes.set_ylabel("bits")
    return figure


PICTURES: dict[str, Callable[[Look], Figure]] = {"slices": slices, "training": training, "flow": flow, "mixed": mixed}


def draw(name: str, theme: str, folder: Path = FOLDER) -> Path:
    """Writes a picture for one kind of page; the same bytes every time."""
    look, path = LOOKS[theme], folder / f"{name}_{theme}.svg"
    roles = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({**RC, **dict.fromkeys(roles, look.ink), "axes.facecolor": "none"}):
        PICTURES[name](look).savefig(path, transparent=True, metadata={"Date": None})
    return path


if __name__ == "__main__":
    for name in PICTURES:
        for theme in LOOKS:
            print(draw(name, theme))
