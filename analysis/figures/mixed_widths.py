"""Figures 2 and 3: Mix'n'Match. Layers of several widths in four layouts or as searched, beside the uniform widths."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import matplotlib
import pandas as pd
from matplotlib.lines import Line2D

from analysis.figures import legends
from analysis.figures.pareto import PANELS, SIZES, Panel, method_styles
from analysis.figures.scales import Points, bits_axis, draw_markers, far_off, limit, point_off, side_by_side, value_axis
from analysis.figures.style import FULL_LINE, INTERPOLATED, RC, TEXT, Style, columns_of, marker, new_figure
from analysis.figures.told_reads import tell_full, tell_reads
from analysis.frame import grids
from analysis.frame.names import BASE_NAMES, model_name, named_weights
from evaluation.results.metrics import LOG_PPLX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIFORM = "MatQuant"
MIXED = "Mix'n'Match"


def mixnmatch_figure(
    rows: pd.DataFrame,
    *,
    width: float = TEXT,
    styles: Mapping[str, Style] | None = None,
    panels: Sequence[Panel] = PANELS,
) -> Figure:
    """The panels of each checkpoint that is read mixed: Task Avg and log perplexity against effective bits.

    `rows` of `summary.summary`.
    """
    styles = styles or method_styles(rows)
    mixed = rows["method"].str.startswith(MIXED)
    of_checkpoints = rows[rows["config_id"].isin(rows.loc[mixed, "config_id"])]
    chosen = of_checkpoints[of_checkpoints["method"].str.startswith((UNIFORM, MIXED))]
    checkpoints = list(dict(tuple(chosen.groupby("config_id", sort=False))).values()) or [chosen]
    full = rows[rows["base"] == "none"]
    across = columns_of(width)
    shown = list(product(checkpoints, panels))
    across = min(across, len(shown))
    lines = math.ceil(len(shown) / across)
    figure, grid = new_figure(width, 2.1 * lines, lines, across)
    handles = _legend(pd.concat([full, chosen]), styles)
    figure.set_figheight(2.1 * lines + 0.1 + 0.15 * legends.rows(figure, handles))
    with matplotlib.rc_context(RC):
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_axis_off()
        for axes, (checkpoint, panel) in zip(list(grid.flat)[: len(shown)], shown, strict=True):
            of_model = full[full["model"].isin(checkpoint["model"])]
            _draw(axes, pd.concat([of_model, checkpoint]), panel, styles)
            name = _name(checkpoint, chosen) if len(checkpoints) > 1 else ""
            axes.set_title("\n".join(filter(None, (name, panel.title))))
        legends.legend_below(figure, handles)
    return figure


def _name(checkpoint: pd.DataFrame, all_rows: pd.DataFrame) -> str:
    """`Gemma-2 2B, OmniQuant, uniform λ`, and its grid where others of its algorithm have another."""
    first = checkpoint.iloc[0]
    parts = grids.differing(all_rows[all_rows["base"] == first["base"]])
    name = f"{model_name(first['model'])}, {BASE_NAMES.get(first['base'], first['base'])}"
    name = f"{name}, {named_weights(first['objective'])}"
    return ", ".join([name, grids.column_text(first.to_dict(), parts)]) if parts else name


def _draw(axes: Axes, rows: pd.DataFrame, panel: Panel, styles: Mapping[str, Style]) -> None:
    for value in rows.loc[rows["base"] == "none", panel.value].dropna() * panel.scale:
        axes.axhline(value, **FULL_LINE, zorder=1)
    reads = rows[rows["base"] != "none"].dropna(subset=[panel.value, "effective_bits"])
    off = far_off(reads[panel.value]) & (panel.value == LOG_PPLX)
    bits_axis(axes, reads["effective_bits"])
    in_view = rows.drop(reads.index[off]).dropna(subset=[panel.value])
    values, errors = (panel.scale * in_view[name] for name in (panel.value, f"{panel.value}_stderr"))
    value_axis(axes, values, nats=panel.value == LOG_PPLX)
    limit(
        axes,
        [*(values - errors.fillna(0)), *(values + errors.fillna(0))],
        reads.loc[off, "effective_bits"].round(1).tolist(),
    )
    lines = {label: reads[reads["label"] == label].sort_values("effective_bits") for label in _in_order(reads)}
    near = {label: line[~off[reads.index.get_indexer(line.index)]] for label, line in lines.items()}
    places = {
        label: Points(line["effective_bits"].to_numpy(float), panel.scale * line[panel.value].to_numpy(float))
        for label, line in near.items()
    }
    moved = side_by_side(axes, places)
    for label, line in lines.items():
        look = {"color": styles[label].colour, "linewidth": 1.1, "zorder": 3}
        axes.plot(line["effective_bits"], panel.scale * line[panel.value], **look)
        _markers(axes, near[label], places[label], panel, styles[label], moved[label])
    columns = reads.loc[off, ["effective_bits", panel.value, "label"]].itertuples(index=False, name=None)
    beyond = [(bits, panel.scale * value, styles[label]) for bits, value, label in columns]
    point_off(axes, beyond)
    aside = [(near[label].index, moved[label]) for label in lines]
    tell_reads(axes, reads.assign(size=reads["effective_bits"]), panel.value, SIZES["effective"], aside)
    tell_full(axes, rows[rows["base"] == "none"], panel.value)


def _in_order(rows: pd.DataFrame) -> list[str]:
    """The labels of the rows, those of uniform widths first."""
    return sorted(rows["label"].unique(), key=lambda label: not label.startswith(UNIFORM))


def _markers(axes: Axes, rows: pd.DataFrame, points: Points, panel: Panel, style: Style, moved: np.ndarray) -> None:
    errors = rows[f"{panel.value}_stderr"].fillna(0).to_numpy(float) * panel.scale
    bars = {"ecolor": style.outline, "elinewidth": 0.7, "alpha": 0.4, "zorder": 2}
    for hollow in (False, True):
        here = rows["interpolated"].to_numpy(bool) == hollow
        look = {**marker(style, hollow=hollow), "zorder": 4}
        draw_markers(axes, Points(points.x[here], points.y[here]), moved[here], errors[here], look, bars)


def _legend(rows: pd.DataFrame, styles: Mapping[str, Style]) -> list[Line2D]:
    handles = []
    measured = rows[[panel.value for panel in PANELS]].notna().any(axis=1)
    for label in _in_order(rows[(rows["base"] != "none") & measured]):
        look = {**marker(styles[label]), "linestyle": "-", "linewidth": 1.1}
        handles.append(Line2D([], [], color=styles[label].colour, label=styles[label].name, **look))
    if rows["interpolated"].any():
        handles.append(Line2D([], [], **marker(INTERPOLATED, hollow=True), label=INTERPOLATED.name))
    if (rows["base"] == "none").any():
        handles.append(Line2D([], [], **FULL_LINE, label="unquantized"))
    return handles
