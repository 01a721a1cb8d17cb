"""Quality against size: the non-dominated read-outs, and the figure that shows them.

A read-out is dominated if another one needs no more bits and is no worse, and is strictly better in one of the two.
The figure has a panel for Task Avg and one for log perplexity, or for other measures, and a row of panels for each
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, assert_never

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures import legends
from analysis.figures.scales import Points, bits_axis, draw_markers, far_off, limit, point_off, side_by_side, value_axis
from analysis.figures.style import (
    CHANCE_LINE,
    FRONT_LINE,
    FULL_LINE,
    INTERPOLATED,
    RC,
    TEXT,
    columns_of,
    marker,
    new_figure,
    styles_of,
)
from analysis.figures.told_reads import tell_full, tell_reads
from analysis.frame.axes import SHOWN, better_is_more
from analysis.frame.names import model_name
from analysis.frame.summary import CHANCE, method_rank
from evaluation.results.metrics import KL, LOG_PPLX, SAME_TOP, TASK_AVG
from matquant.notation import FULL_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from analysis.figures.style import Style

SizeKind = Literal["effective", "with_grid", "disk"]
SIZES: Mapping[SizeKind, str] = {
    "effective": "effective bits per quantized weight",
    "with_grid": "bits per quantized weight, with scales and zeros",
    "disk": "megabytes on disk",
}
"""The labels of the horizontal axis: the paper's count, the bits stored for quantized weights, or the whole model."""

PANEL_HEIGHT = 2.2
FAINT = 0.45
"""Opacity of read-outs that another one dominates."""


def non_dominated(bits: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """The points, of n, that no other point dominates, as a mask; fewer bits and more quality are better.

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


def panel_of(value: str) -> Panel:
    """The panel of a measure, by its column in `summary.summary`."""
    measure, more = SHOWN[value], better_is_more(value)
    title = f"{measure.title}, {'higher' if more else 'lower'} is better"
    return Panel(value, title, measure.scale, +1 if more else -1)


DIVERGENCE_PANELS = (panel_of(KL), panel_of(SAME_TOP))


def sizes(rows: pd.DataFrame, size: SizeKind, num_parameters: Mapping[str, float] | None = None) -> pd.Series:
    """The cost of every read-out, in the unit of the axis; NaN where it is not known.

    `num_parameters`: of the whole model, by model name; megabytes need it.
    """
    match size:
        case "effective":
            return rows["effective_bits"]
        case "with_grid":
            return _with_grid(rows)
        case "disk":
            return rows["model_bits"] * rows["model"].map(dict(num_parameters or {})).astype(float) / 8e6
        case _:
            assert_never(size)


def _with_grid(rows: pd.DataFrame) -> pd.Series:
    """Everything that is stored for a quantized weight, in bits: w + grid + overflow, with w the mean width.

    The paper's count has w, plus a bit for each overflow weight, which is stored at w and in the list.  Where layers of
    several widths have such lists, w follows from the bits of the whole model, 16 - share (16 - w - grid - overflow),
    with the share of quantized weights from another read-out of the cell; without one the budget stands for w.
    """
    known = (rows["overflow_bits"] == 0) | rows["plan"].str.fullmatch(r"int\d\+ep")
    lists = rows["grid_bits"] + rows["overflow_bits"]
    width = rows["effective_bits"].where(rows["overflow_bits"] == 0, rows["bits"].where(known))
    share = (FULL_BITS - rows["model_bits"]) / (FULL_BITS - width - lists)
    of_cell = share.where(share > 0).groupby(rows["cell_id"]).transform("first")
    of_model = FULL_BITS - (FULL_BITS - rows["model_bits"]) / of_cell
    return (width + lists).fillna(of_model).fillna(rows["bits"] + lists)


def pareto_figure(
    rows: pd.DataFrame,
    tasks: Sequence[str],
    *,
    size: SizeKind = "effective",
    num_parameters: Mapping[str, float] | None = None,
    width: float = TEXT,
    panels: Sequence[Panel] = PANELS,
    styles: Mapping[str, Style] | None = None,
) -> Figure:
    """Draws the rows of `summary.summary`: a marker a read-out, the unquantized model as a horizontal line.

    Markers that would hide each other stand side by side.  Log perplexities far off are arrows with their value.
    """
    rows = rows.assign(size=sizes(rows, size, num_parameters))
    models = list(rows["model"].unique()) or [""]
    styles = _in_order(rows, styles or method_styles(rows), [panel.value for panel in panels])
    handles = _legend(rows, styles, tasks)
    across = min(columns_of(width), len(panels))
    number = len(models) * len(panels)
    lines = -(-number // across)
    figure, grid = new_figure(width, PANEL_HEIGHT * lines, lines, across)
    figure.set_figheight(PANEL_HEIGHT * lines + 0.2 + 0.15 * legends.rows(figure, handles))
    with matplotlib.rc_context(RC):
        for axes in list(grid.flat)[number:]:
            axes.set_axis_off()
        for axes, (model, panel) in zip(list(grid.flat)[:number], product(models, panels), strict=True):
            axes.set_title(f"{model_name(model)}\n{panel.title}" if len(models) > 1 else panel.title)
            _draw_panel(axes, rows[rows["model"] == model], panel, styles, tasks, size)
        legends.legend_below(figure, handles)
    return figure


def method_styles(rows: pd.DataFrame) -> dict[str, Style]:
    """The style of each label of the rows."""
    return styles_of(rows.loc[rows["base"] != "none", "label"])


def _in_order(rows: pd.DataFrame, styles: Mapping[str, Style], shown: Sequence[str]) -> dict[str, Style]:
    """The styles of rows that have a value, in the order of a legend: methods in the paper's, short names first."""
    reads = rows[rows["base"] != "none"]
    methods: dict[str, str] = dict(zip(reads["label"], reads["method"], strict=True))
    ordered = sorted(methods.items(), key=lambda item: (method_rank(item[1]), len(item[1])))
    values = [name for name in shown if name in reads]
    measured = set(reads.loc[reads[values].notna().any(axis=1), "label"])
    return {label: styles[label] for label, _ in ordered if label in measured or not measured}


def _draw_panel(
    axes: Axes, rows: pd.DataFrame, panel: Panel, styles: Mapping[str, Style], tasks: Sequence[str], size: SizeKind
) -> None:
    full, reads = rows[rows["base"] == "none"], rows[rows["base"] != "none"]
    for value in full[panel.value].dropna() * panel.scale:
        axes.axhline(value, **FULL_LINE, zorder=1)
    chance = chance_in_view(rows, tasks) if panel.value == TASK_AVG else None
    if chance is not None:
        axes.axhline(panel.scale * chance, **CHANCE_LINE, zorder=1)
    measured = reads.dropna(subset=[panel.value, "size"])
    measured = measured.assign(kept=non_dominated(measured["size"], panel.sign * measured[panel.value]))
    # Perplexity of a model that has collapsed is infinite.
    off = np.isinf(measured[panel.value].to_numpy(float)) | (far_off(measured[panel.value]) & (panel.value == LOG_PPLX))
    match size:
        case "disk":
            _megabyte_axis(axes, measured["size"])
        case "effective" | "with_grid":
            bits_axis(axes, measured["size"], SIZES[size])
        case _:
            assert_never(size)
    in_view = rows.drop(measured.index[off]).dropna(subset=[panel.value])
    values, errors = (panel.scale * in_view[name] for name in (panel.value, f"{panel.value}_stderr"))
    value_axis(axes, values, nats=SHOWN[panel.value].is_log)
    ends = [*(values - errors.fillna(0)), *(values + errors.fillna(0)), *([] if chance is None else [100 * chance])]
    limit(axes, ends, measured.loc[off, "size"].round(1).tolist())
    _draw_front(axes, measured, panel)
    in_view = {label: measured[~off & (measured["label"] == label)].sort_values("size") for label in styles}
    places = {
        label: Points(rows["size"].to_numpy(float), panel.scale * rows[panel.value].to_numpy(float))
        for label, rows in in_view.items()
    }
    # Markers on a line keep their places before others do.
    moved = side_by_side(
        axes, {label: places[label] for label in sorted(styles, key=lambda label: not _is_joined(label))}
    )
    for label, style in styles.items():
        if _is_joined(label):
            line = measured[measured["label"] == label].sort_values("size")
            look = {"color": style.colour, "linewidth": 1.1, "alpha": 0.45, "zorder": 3}
            axes.plot(line["size"], panel.scale * line[panel.value], **look)
        _draw_method(axes, in_view[label], panel, style, moved[label])
    columns = measured.loc[off, ["size", panel.value, "label"]].itertuples(index=False, name=None)
    beyond = [(place, panel.scale * value, styles[label]) for place, value, label in columns]
    point_off(axes, beyond)
    tell_reads(axes, measured, panel.value, SIZES[size], [(in_view[label].index, moved[label]) for label in styles])
    tell_full(axes, full, panel.value)


def _megabyte_axis(axes: Axes, sizes: pd.Series) -> None:
    axes.set_xlabel(SIZES["disk"])
    if len(sizes):
        axes.set_xlim(sizes.min() / 1.04, sizes.max() * 1.04)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _draw_method(axes: Axes, rows: pd.DataFrame, panel: Panel, style: Style, moved: np.ndarray) -> None:
    """One method's markers with their errors: hollow where interpolated, faint where dominated."""
    points = Points(rows["size"].to_numpy(float), panel.scale * rows[panel.value].to_numpy(float))
    errors = panel.scale * rows[f"{panel.value}_stderr"].fillna(0).to_numpy(float)
    kept, interpolated = rows["kept"].to_numpy(bool), rows["interpolated"].to_numpy(bool)
    for front, hollow in product((False, True), repeat=2):
        here = (kept == front) & (interpolated == hollow)
        opacity = 1.0 if front else FAINT
        bars = {"ecolor": style.outline, "elinewidth": 0.8, "alpha": 0.55 * opacity, "zorder": 2}
        look = {**marker(style, hollow=hollow), "alpha": opacity, "zorder": 5 if front else 4}
        draw_markers(axes, Points(points.x[here], points.y[here]), moved[here], errors[here], look, bars)


def _is_joined(method: str) -> bool:
    """True for MatQuant: its read-outs come out of one checkpoint, so a line joins them."""
    return method.startswith("MatQuant")


def _draw_front(axes: Axes, rows: pd.DataFrame, panel: Panel) -> None:
    """The staircase of the best that each number of bits buys, as a pale line under everything else."""
    kept = rows[rows["kept"]].sort_values("size")
    axes.step(kept["size"], kept[panel.value] * panel.scale, where="post", **FRONT_LINE, zorder=0)


def chance_in_view(rows: pd.DataFrame, tasks: Sequence[str]) -> float | None:
    """The Task Avg of guessing, a fraction; None where it is unknown for a task or far below every row."""
    values = rows[TASK_AVG].dropna()
    if values.empty or not tasks or any(task not in CHANCE for task in tasks):
        return None
    chance = sum(CHANCE[task] for task in tasks) / len(tasks)
    return chance if values.min() - chance < 0.5 * (values.max() - values.min()) else None


def _legend(rows: pd.DataFrame, styles: Mapping[str, Style], tasks: Sequence[str]) -> list[Line2D]:
    """One entry for everything that is drawn."""
    handles = [_method_handle(style, joined=_is_joined(label)) for label, style in styles.items()]
    if rows["interpolated"].any():
        handles.append(Line2D([], [], **marker(INTERPOLATED, hollow=True), label=INTERPOLATED.name))
    dtypes = rows.loc[rows["base"] == "none", "method"].unique()
    handles += [Line2D([], [], **FULL_LINE, label=f"{dtype}, unquantized") for dtype in dtypes]
    handles.append(Line2D([], [], **FRONT_LINE, label="the best for its size; others faint"))
    if any(chance_in_view(of_model, tasks) is not None for _, of_model in rows.groupby("model")):
        handles.append(Line2D([], [], **CHANCE_LINE, label="chance"))
    return handles


def _method_handle(style: Style, *, joined: bool) -> Line2D:
    look = {**marker(style), "linestyle": "-" if joined else "none", "linewidth": 1.1}
    return Line2D([], [], color=style.colour, label=style.name, **look)
