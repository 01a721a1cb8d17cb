"""Quality against effective bits: the non-dominated read-outs, and the figure that shows them.

A read-out is dominated if another one needs no more bits and is no worse, and is strictly better in one of the two.
The figure has a panel for Task Avg and one for log perplexity, and a row of panels for each model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from analysis.significance import TASK_AVG
from analysis.summary import method_rank
from evaluation.results import LOG_PPLX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from numpy.typing import ArrayLike

CHANCE = {"arc_challenge": 0.25, "arc_easy": 0.25, "boolq": 0.5, "hellaswag": 0.25, "piqa": 0.5, "winogrande": 0.5}
"""Accuracy of a guess: one over the number of answers (a few ARC questions have three or five)."""

INK, PAPER, QUIET = "#1b1b1b", "#fefefe", "#8c8c8c"
"""Colours of text, background and everything that stands back; a page may replace them to follow its own theme."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
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
    "svg.fonttype": "path",
    "svg.hashsalt": "matquant",
    "pdf.fonttype": 42,
}
PANEL_INCHES = (3.3, 2.5)


def non_dominated(bits: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Which of n points no other point dominates; fewer bits and more quality are better.

    A point with a NaN is never among them; equal points are there together.  O(n log n).
    """
    cost, value = np.asarray(bits, dtype=float), np.asarray(quality, dtype=float)
    kept = np.zeros(len(cost), dtype=bool)
    best = None
    known = np.flatnonzero(~(np.isnan(cost) | np.isnan(value)))
    for i in known[np.lexsort((-value[known], cost[known]))]:
        if best is None or value[i] > value[best]:
            best = i
        kept[i] = (cost[i], value[i]) == (cost[best], value[best])
    return kept


# --- the figure ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How a method is drawn, in every panel."""

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


@dataclass(frozen=True)
class Panel:
    """One quantity on the vertical axis."""

    value: str
    title: str
    scale: float
    sign: int


PANELS = (
    Panel(TASK_AVG, "Task Avg (%), higher is better", 100.0, +1),
    Panel(LOG_PPLX, "log perplexity (nats per token), lower is better", 1.0, -1),
)
FULL_LINE = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (4, 2))}
CHANCE_LINE = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (1, 2))}
FRONT_LINE = {"color": QUIET, "linewidth": 2.6, "alpha": 0.3, "solid_capstyle": "butt", "solid_joinstyle": "miter"}


def pareto_figure(rows: pd.DataFrame, tasks: Sequence[str]) -> Figure:
    """Draws the rows of `tables.summary`: a marker a read-out, the unquantized model as a horizontal line."""
    models = list(rows["model"].unique()) or [""]
    styles = method_styles(rows)
    handles = _legend(rows, styles, tasks)
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = 3 if longest <= 30 else 2 if longest <= 54 else 1
    width, height = PANEL_INCHES
    legend_height = 0.2 + 0.165 * -(-len(handles) // columns)
    with matplotlib.rc_context(STYLE):
        size = (2 * width, height * len(models) + legend_height)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06), facecolor=PAPER)
        grid = figure.subplots(len(models), len(PANELS), squeeze=False)
        for line, model in zip(grid, models, strict=True):
            for axes, panel in zip(line, PANELS, strict=True):
                axes.set_title(f"{model}\n{panel.title}" if len(models) > 1 else panel.title, loc="left")
                _draw_panel(axes, rows[rows["model"] == model], panel, styles, tasks)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.4)
    return figure


def method_styles(rows: pd.DataFrame) -> dict[str, Style]:
    """A style for each label: that of its method if no other label has it yet, else the next free one."""
    reads = rows[rows["base"] != "none"]
    methods: dict[str, str] = dict(zip(reads["label"], reads["method"], strict=True))
    ordered = sorted(methods.items(), key=lambda item: (method_rank(item[1]), len(item[1])))
    free = dict(METHOD_STYLES)
    colours = cycle([style.colour for style in METHOD_STYLES.values()])
    others = chain(OTHER_STYLES, (Style(next(colours), marker) for marker in cycle("<>*hpd")))
    styles = {}
    for label, method in ordered:
        own = next((name for name in free if method.startswith(name)), None)
        styles[label] = next(others) if own is None else free.pop(own)
    return styles


def _draw_panel(
    axes: Axes, rows: pd.DataFrame, panel: Panel, styles: Mapping[str, Style], tasks: Sequence[str]
) -> None:
    full, reads = rows[rows["base"] == "none"], rows[rows["base"] != "none"]
    for value in full[panel.value].dropna() * panel.scale:
        axes.axhline(value, **FULL_LINE, zorder=1)
    if panel.value == TASK_AVG and (chance := chance_in_view(rows, tasks)) is not None:
        axes.axhline(panel.scale * chance, **CHANCE_LINE, zorder=1)
    measured = reads.dropna(subset=[panel.value, "effective_bits"])
    _draw_front(axes, measured, panel)
    for label, style in styles.items():
        _draw_method(axes, measured[measured["label"] == label].sort_values("effective_bits"), panel, style)
    _bits_axis(axes, measured["effective_bits"])
    _value_axis(axes, rows[panel.value].dropna() * panel.scale, panel)


def _draw_method(axes: Axes, rows: pd.DataFrame, panel: Panel, style: Style) -> None:
    """One method's markers with their errors, hollow where interpolated; MatQuant's are one checkpoint, so joined."""
    if rows.empty:
        return
    bits, values = rows["effective_bits"].to_numpy(), rows[panel.value].to_numpy() * panel.scale
    errors = rows[f"{panel.value}_stderr"].fillna(0).to_numpy() * panel.scale
    axes.errorbar(bits, values, yerr=errors, fmt="none", ecolor=style.colour, elinewidth=0.8, alpha=0.55, zorder=3)
    if _is_joined(rows["method"].iloc[0]):
        axes.plot(bits, values, color=style.colour, linewidth=1.1, zorder=3)
    for hollow in (False, True):
        drawn = rows["interpolated"].to_numpy() == hollow
        axes.plot(bits[drawn], values[drawn], **_marker(style, hollow=hollow), zorder=4)


def _is_joined(method: str) -> bool:
    return method.startswith("MatQuant")


def _marker(style: Style, *, hollow: bool = False) -> dict[str, Any]:
    face = PAPER if hollow else style.colour
    look = {"marker": style.marker, "markersize": 4.6, "markerfacecolor": face, "markeredgecolor": style.colour}
    return {**look, "markeredgewidth": 1.0, "linestyle": "none"}


def _draw_front(axes: Axes, rows: pd.DataFrame, panel: Panel) -> None:
    """The staircase of the best that each number of bits buys, as a pale line under everything else."""
    kept = rows[non_dominated(rows["effective_bits"], panel.sign * rows[panel.value])].sort_values("effective_bits")
    axes.step(kept["effective_bits"], kept[panel.value] * panel.scale, where="post", **FRONT_LINE, zorder=0)


def chance_in_view(rows: pd.DataFrame, tasks: Sequence[str]) -> float | None:
    """The Task Avg of guessing, a fraction; None where it is unknown for a task or far below every row."""
    values = rows[TASK_AVG].dropna()
    if values.empty or not tasks or any(task not in CHANCE for task in tasks):
        return None
    chance = sum(CHANCE[task] for task in tasks) / len(tasks)
    return chance if values.min() - chance < 0.5 * (values.max() - values.min()) else None


def _bits_axis(axes: Axes, bits: pd.Series) -> None:
    """A logarithmic axis: from 8 to 4 bits is the same step in size as from 4 to 2."""
    low, high = (bits.min() / 1.13, bits.max() * 1.13) if len(bits) else (2 / 1.13, 8 * 1.13)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    _plain_ticks(axes.xaxis, [width for width in (1, 2, 3, 4, 6, 8, 12, 16) if low <= width <= high])
    axes.set_xlabel("effective bits per quantized weight")


def _value_axis(axes: Axes, values: pd.Series, panel: Panel) -> None:
    """Percent as they are; log perplexity on a logarithmic axis where int2 would press other widths into a line."""
    if values.empty:
        axes.text(0.5, 0.5, "no results yet", transform=axes.transAxes, ha="center", va="center", color=QUIET)
        _plain_ticks(axes.yaxis, [])
    elif panel.value == LOG_PPLX and 0 < 2 * values.min() < values.max():
        low, high = values.min() / 1.06, values.max() * 1.08
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        _plain_ticks(axes.yaxis, readable_ticks(low, high))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def readable_ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high] that keep a distance on a logarithmic axis: 3.5, 4, 5, 6, 8, 10, 15."""
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)
    candidates = [step * 10.0**power for power in range(-3, 4) for step in steps]
    ticks: list[float] = []
    for tick in candidates:
        if low <= tick <= high and (not ticks or np.log(tick / ticks[-1]) > 0.07 * np.log(high / low)):
            ticks.append(tick)
    return ticks


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _legend(rows: pd.DataFrame, styles: Mapping[str, Style], tasks: Sequence[str]) -> list[Line2D]:
    """One entry for everything that is drawn."""
    joined = set(rows.loc[rows["method"].map(_is_joined).astype(bool), "label"])
    handles = [_method_handle(label, style, joined=label in joined) for label, style in styles.items()]
    if rows["interpolated"].any():
        handles.append(Line2D([], [], **_marker(Style(QUIET, "o"), hollow=True), label="hollow: interpolated width"))
    dtypes = rows.loc[rows["base"] == "none", "method"].unique()
    handles += [Line2D([], [], **FULL_LINE, label=f"{dtype}, unquantized") for dtype in dtypes]
    handles.append(Line2D([], [], **FRONT_LINE, label="non-dominated"))
    if any(chance_in_view(of_model, tasks) is not None for _, of_model in rows.groupby("model")):
        handles.append(Line2D([], [], **CHANCE_LINE, label="chance"))
    return handles


def _method_handle(label: str, style: Style, *, joined: bool) -> Line2D:
    look = {**_marker(style), "linestyle": "-" if joined else "none", "linewidth": 1.1}
    return Line2D([], [], color=style.colour, label=label, **look)


# --- files -----------------------------------------------------------------------------------------------------------


def save_figure(figure: Figure, path: Path, form: str) -> None:
    """Writes `svg`, `pdf` or `png`, the same bytes for the same figure: no date, no random ids."""
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format=form, dpi=300, metadata=dates[form])
