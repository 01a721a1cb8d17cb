"""Figures 2 and 3: Mix'n'Match. Layers of several widths in four layouts or as searched, beside the uniform widths."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import matplotlib
import pandas as pd
from matplotlib.lines import Line2D

from analysis.figures.pareto import PANELS, SIZES, Panel
from analysis.figures.style import (
    FULL_LINE,
    INK,
    METHOD_STYLES,
    QUIET,
    RC,
    TEXT,
    Style,
    bits_axis,
    columns_of,
    marker,
    new_figure,
    value_axis,
)
from analysis.figures.told_reads import tell_full, tell_reads
from analysis.frame import grids
from analysis.frame.names import BASE_NAMES, model_name
from evaluation.results.metrics import LOG_PPLX

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIFORM = "MatQuant"
LAYOUTS = {
    "pyramid": Style("#D55E00", "^"),
    "reverse pyramid": Style("#0072B2", "v"),
    "increasing": Style("#CC79A7", ">"),
    "decreasing": Style("#E69F00", "<"),
    "dynamic program": Style("#56B4E9", "P"),
    "dynamic program linear": Style("#56B4E9", "p"),
    "evolution": Style(INK, "X"),
    "evolution linear": Style(INK, "*"),
}


def mixnmatch_figure(rows: pd.DataFrame, *, width: float = TEXT) -> Figure:
    """A row of panels for each checkpoint that is read mixed: Task Avg and log perplexity against effective bits.

    `rows` of `summary.summary`.
    """
    mixed = rows["method"].str.startswith("Mix'n'Match")
    of_checkpoints = rows[rows["config_id"].isin(rows.loc[mixed, "config_id"])]
    chosen = of_checkpoints[of_checkpoints["method"].str.startswith((UNIFORM, "Mix'n'Match"))]
    checkpoints = list(dict(tuple(chosen.groupby("config_id", sort=False))).values()) or [chosen]
    full = rows[rows["base"] == "none"]
    across = columns_of(width)
    lines = len(checkpoints) * len(PANELS) // across
    figure, grid = new_figure(width, 2.1 * lines + 0.2 + 0.4 / across, lines, across)
    with matplotlib.rc_context(RC):
        for axes, (checkpoint, panel) in zip(grid.flat, product(checkpoints, PANELS), strict=True):
            of_model = full[full["model"].isin(checkpoint["model"])]
            _draw(axes, pd.concat([of_model, checkpoint]), panel)
            name = _name(checkpoint, chosen) if len(checkpoints) > 1 else ""
            axes.set_title("\n".join(filter(None, (name, panel.title))))
        figure.legend(handles=_legend(pd.concat([full, chosen])), loc="outside lower center", ncols=2 * across)
    return figure


def _name(checkpoint: pd.DataFrame, all_rows: pd.DataFrame) -> str:
    """`Gemma-2 2B, OmniQuant {int8: 1, int4: 1, int2: 1}`, and its grid where others of its algorithm have another."""
    first = checkpoint.iloc[0]
    parts = grids.differing(all_rows[all_rows["base"] == first["base"]])
    name = f"{model_name(first['model'])}, {BASE_NAMES.get(first['base'], first['base'])} {first['objective']}"
    return ", ".join([name, grids.column_text(first.to_dict(), parts)]) if parts else name


def _draw(axes: Axes, rows: pd.DataFrame, panel: Panel) -> None:
    for value in rows.loc[rows["base"] == "none", panel.value].dropna() * panel.scale:
        axes.axhline(value, **FULL_LINE, zorder=1)
    reads = rows[rows["base"] != "none"].dropna(subset=[panel.value, "effective_bits"])
    uniform = reads[reads["method"].str.startswith(UNIFORM)]
    _line(axes, uniform, panel, METHOD_STYLES[UNIFORM])
    for layout, style in LAYOUTS.items():
        _line(axes, reads[reads["method"] == f"Mix'n'Match {layout}"], panel, style)
    bits_axis(axes, reads["effective_bits"])
    value_axis(axes, rows[panel.value].dropna() * panel.scale, nats=panel.value == LOG_PPLX)
    tell_reads(axes, reads.assign(size=reads["effective_bits"]), panel.value, SIZES["effective"])
    tell_full(axes, rows[rows["base"] == "none"], panel.value)


def _line(axes: Axes, rows: pd.DataFrame, panel: Panel, style: Style) -> None:
    rows = rows.sort_values("effective_bits")
    bits, values = rows["effective_bits"].to_numpy(float), rows[panel.value].to_numpy(float) * panel.scale
    errors = rows[f"{panel.value}_stderr"].fillna(0).to_numpy(float) * panel.scale
    axes.plot(bits, values, color=style.colour, linewidth=1.1, zorder=3)
    axes.errorbar(bits, values, yerr=errors, fmt="none", ecolor=style.colour, elinewidth=0.7, alpha=0.4, zorder=2)
    for hollow in (False, True):
        drawn = rows["interpolated"].to_numpy(bool) == hollow
        axes.plot(bits[drawn], values[drawn], **marker(style, hollow=hollow), zorder=4)


def _legend(rows: pd.DataFrame) -> list[Line2D]:
    methods = set(rows["method"])
    drawn = {name: style for name, style in LAYOUTS.items() if f"Mix'n'Match {name}" in methods}
    styles = {"uniform widths": METHOD_STYLES[UNIFORM], **drawn}
    handles = []
    for name, style in styles.items():
        look = {**marker(style), "linestyle": "-", "linewidth": 1.1}
        handles.append(Line2D([], [], color=style.colour, label=name, **look))
    if rows["interpolated"].any():
        handles.append(Line2D([], [], **marker(Style(QUIET, "o"), hollow=True), label="hollow: interpolated"))
    if (rows["base"] == "none").any():
        handles.append(Line2D([], [], **FULL_LINE, label="unquantized"))
    return handles
