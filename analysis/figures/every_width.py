"""Figure 1b: Task Avg against bits for MatQuant, its interpolated widths, the Baseline, Sliced int8 and MinMax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis import published
from analysis.figures import legends
from analysis.figures.scales import (
    Points,
    bits_axis,
    draw_markers,
    far_off,
    limit,
    point_off,
    side_by_side,
    value_axis,
)
from analysis.figures.style import (
    COLUMN,
    FULL_LINE,
    INTERPOLATED,
    QUIET,
    RC,
    Style,
    marker,
    new_figure,
    styles_of,
)
from analysis.figures.told import number_text, tell
from analysis.figures.told_reads import FULL_PLACE
from analysis.frame.names import BASE_NAMES, model_name
from evaluation.results.metrics import LOG_PPLX, TASK_AVG
from matquant.notation import Objective, Slice

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {TASK_AVG: "Task Avg (%)", LOG_PPLX: "log perplexity (nats per token)"}
WIDTHS = {Slice(bits): bits for bits in (8, 6, 4, 3, 2)}


@dataclass(frozen=True)
class PlottedLine:
    """A line of the figure: which read-outs are on it, by the name in `points`, and how it is drawn."""

    name: str
    style: Style
    dashes: str


DASHES = {"MatQuant": "-", "Baseline": "--", "Sliced int8": ":", "MinMax": "-."}


def lines_of(base: str) -> list[PlottedLine]:
    """The lines of an algorithm, each in the style and under the name that its rows have in every other figure."""
    named = {name: f"{name} ({BASE_NAMES.get(base, base)})" for name in DASHES}
    named["MinMax"] = f"Sliced int8 ({BASE_NAMES['minmax']})"
    styles = styles_of(named.values())
    return [PlottedLine(name, styles[named[name]], dashes) for name, dashes in DASHES.items()]


def widths_figure(rows: pd.DataFrame, *, base: str = "omniquant", value: str = TASK_AVG, beside: bool = True) -> Figure:
    """A panel for each model of the rows of `summary.summary`; the paper's own points beside ours where it has them.

    A model without results is drawn from what the paper prints, and says so.  `beside=False`: nothing of the paper's
    beside results of ours, which are another quantity.
    """
    models = list(rows["model"].unique()) or ["gemma2_9b"]
    ours = {model: points(rows[rows["model"] == model], base, value) for model in models}
    paper = {model: printed_points(model, base, value) for model in models}
    paper = {model: found if beside or ours[model].empty else found.iloc[:0] for model, found in paper.items()}
    shown = {*pd.concat([*ours.values(), *paper.values()])["line"]}
    theirs = any(len(ours[model]) and len(paper[model]) for model in models)
    figure, grid = new_figure(COLUMN, 2.2 * len(models), len(models))
    handles = _legend(shown, lines_of(base), theirs=theirs)
    figure.set_figheight(2.0 * len(models) + 0.1 + 0.15 * legends.rows(figure, handles))
    with matplotlib.rc_context(RC):
        for (axes,), model in zip(grid, models, strict=True):
            _draw(axes, ours[model], paper[model], value, lines_of(base))
            of_paper = ours[model].empty and len(paper[model])
            axes.set_title(model_name(model) + (", the paper's numbers" if of_paper else ""))
        legends.legend_below(figure, handles)
    return figure


def of_one_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows on the grid of the first nested checkpoint of each model: a line of the figure is of one grid."""
    kept = []
    for _, of_model in rows.groupby("model", sort=False):
        nested = of_model[of_model["method"].str.startswith("MatQuant")]
        if nested.empty:
            kept.append(of_model)
            continue
        first = nested.iloc[0]
        same_grid = of_model["grid"] == first["grid"]
        # The ends of another algorithm are its own.
        same_ends = (of_model["base"] != first["base"]) | (of_model["ends"] == first["ends"])
        kept.append(of_model[(of_model["base"] == "none") | (same_grid & same_ends)])
    return pd.concat(kept) if kept else rows


def of_one_checkpoint(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first MatQuant of each model and algorithm, and of the first other row of each name and plan.

    A line of the figure goes through the slices of one checkpoint.
    """
    nested = rows[rows["method"] == "MatQuant"]
    first = nested.drop_duplicates(["model", "base"])["config_id"]
    kept = rows[(rows["method"] != "MatQuant") | rows["config_id"].isin(first)]
    return kept[~kept.duplicated(["model", "base", "method", "plan"])]


def points(rows: pd.DataFrame, base: str, value: str) -> pd.DataFrame:
    """Line, bits, value and its error, interpolated or not, of every read-out that is on one of LINES."""
    uniform = rows["plan"].str.fullmatch(r"int\d") | (rows["base"] == "none")
    # The line of MinMax is of its int8, sliced: what was rounded to fewer bits is no part of it.
    uniform &= (rows["base"] != "minmax") | (rows["method"] == "Sliced int8") | (rows["plan"] == "int8")
    measured = rows[uniform & rows[value].notna() & rows["base"].isin([base, "minmax", "none"])]
    line = measured["method"].where(measured["base"] != "minmax", "MinMax").where(measured["base"] != "none", "full")
    scale = 1 if value == LOG_PPLX else 100
    found = pd.DataFrame(
        {
            "line": line,
            "bits": measured["effective_bits"],
            "value": scale * measured[value],
            "stderr": scale * measured[f"{value}_stderr"],
            "interpolated": measured["interpolated"],
        }
    )
    # Sliced int8 begins at int8, where it is the int8 Baseline.
    parent = found[(found["line"] == "Baseline") & (found["bits"] == 8)]
    return pd.concat([found, parent.assign(line="Sliced int8")], ignore_index=True)


def printed_points(model: str, base: str, value: str) -> pd.DataFrame:
    """The points that MatQuant v3 prints in Tables 1 and 2, with known errors corrected."""
    frame = published.table(1 if base == "omniquant" else 2)
    frame = frame[(frame["model"] == model) & (frame["metric"] == value)].dropna(subset="value")
    objective = Objective.parse(8, {"int8": 1, "int4": 1, "int2": 1})
    interpolated = {str(width) for width in WIDTHS if objective.is_interpolated(width)}
    bits = {str(width): float(number) for width, number in WIDTHS.items()}
    found = pd.DataFrame(
        {
            "line": frame["method"].where(frame["base"] != "none", "full"),
            "bits": frame["width"].map(bits),
            "value": frame["should_read"].fillna(frame["value"]),
            "stderr": float("nan"),
            "interpolated": frame["width"].isin(interpolated) & (frame["method"] == "MatQuant"),
        }
    )
    parent = found[(found["line"] == "Baseline") & (found["bits"] == 8)]
    return pd.concat([found, parent.assign(line="Sliced int8")], ignore_index=True)


def _draw(axes: Axes, ours: pd.DataFrame, paper: pd.DataFrame, value: str, lines: Sequence[PlottedLine]) -> None:
    drawn = pd.concat([ours, paper])
    off = far_off(drawn["value"]) & (value == LOG_PPLX)
    bits_axis(axes, drawn.loc[drawn["line"] != "full", "bits"].astype(float))
    in_view = drawn[~off]
    value_axis(axes, in_view["value"], nats=value == LOG_PPLX)
    errors = in_view["stderr"].fillna(0)
    limit(axes, [*(in_view["value"] - errors), *(in_view["value"] + errors)], drawn.loc[off, "bits"].tolist())
    edge = float(drawn.loc[off, "value"].min()) if off.any() else np.inf
    if len(ours):
        _lines(axes, paper, lines, edge, faint=True)
        _lines(axes, ours, lines, edge, faint=False)
    else:
        _lines(axes, paper, lines, edge, faint=False)
    styles = {line.name: line.style for line in lines}
    beyond = (ours if len(ours) else paper)[off[: len(ours)] if len(ours) else off]
    columns = beyond[["bits", "value", "line"]].itertuples(index=False, name=None)
    point_off(axes, [(bits, number, styles[line]) for bits, number, line in columns if line in styles])
    axes.set_ylabel(TITLES[value])
    for source, found in (("ours", ours), ("the paper's", paper)):
        _tell(axes, found, source, TITLES[value])


def _tell(axes: Axes, found: pd.DataFrame, source: str, title: str) -> None:
    """Every point of a line; the unquantized model at the right end of its own."""
    facts = found.assign(source=source, quantity=title)[["source", "quantity", *found]]
    for is_full, of_kind in facts.groupby(facts["line"] == "full"):
        words = [_words(row, source, title) for row in of_kind.to_dict("records")]
        transform = axes.get_yaxis_transform() if is_full else None
        tell(axes, FULL_PLACE if is_full else of_kind["bits"], of_kind["value"], of_kind, words, transform)


def _words(row: Mapping[Any, Any], source: str, title: str) -> str:
    is_full = row["line"] == "full"
    place = "" if is_full else f"\n{row['bits']:.4g} bits" + ", interpolated" * bool(row["interpolated"])
    name = "unquantized" if is_full else row["line"]
    return f"{name}, {source}\n{title}: {number_text(row['value'], row['stderr'])}{place}"


def _lines(axes: Axes, found: pd.DataFrame, lines: Sequence[PlottedLine], edge: float, *, faint: bool) -> None:
    """Lines with their markers and errors up to an edge; `faint` for the paper's beside ours, which have no errors."""
    look = {"alpha": 0.35 if faint else 1.0, "zorder": 2 if faint else 4}
    for full in found.loc[found["line"] == "full", "value"]:
        axes.axhline(full, **FULL_LINE, zorder=1)
    rows = {line.name: found[found["line"] == line.name].sort_values("bits") for line in lines}
    near = {name: on[on["value"] < edge] for name, on in rows.items()}
    places = {name: Points(on["bits"].to_numpy(float), on["value"].to_numpy(float)) for name, on in near.items()}
    moved = side_by_side(axes, places)
    for line in reversed(lines):  # MatQuant comes last, on top
        on, points = near[line.name], places[line.name]
        whole = rows[line.name]
        if whole.empty:
            continue
        stroke = {"color": line.style.colour, "linestyle": line.dashes, **look}
        _join_neighbours(axes, whole["bits"].to_numpy(float), whole["value"].to_numpy(float), stroke)
        errors, interpolated = on["stderr"].fillna(0).to_numpy(float), on["interpolated"].to_numpy(bool)
        bars = {"ecolor": line.style.outline, "elinewidth": 0.7, "alpha": 0.5}
        for hollow in (False, True):
            here = interpolated == hollow
            shape = {**marker(line.style, hollow=hollow), **look}
            kept = Points(points.x[here], points.y[here])
            draw_markers(axes, kept, moved[line.name][here], errors[here], shape, bars)


def _join_neighbours(axes: Axes, bits: np.ndarray, values: np.ndarray, look: Mapping[str, Any]) -> None:
    """A line through the widths of the paper; it breaks where one of them is missing."""
    widths = sorted({float(width) for width in WIDTHS.values()} | set(bits))
    measured = dict(zip(bits, values, strict=True))
    axes.plot(widths, [measured.get(width, np.nan) for width in widths], linewidth=1.1, **look)


def _legend(shown: Container[str], lines: Sequence[PlottedLine], *, theirs: bool) -> list[Line2D]:
    handles = []
    for line in lines:
        if line.name in shown:
            look = {**marker(line.style), "linestyle": line.dashes, "linewidth": 1.1}
            handles.append(Line2D([], [], color=line.style.colour, label=line.style.name, **look))
    if "MatQuant" in shown:
        handles.append(Line2D([], [], **marker(INTERPOLATED, hollow=True), label=INTERPOLATED.name))
    if "full" in shown:
        handles.append(Line2D([], [], **FULL_LINE, label="unquantized"))
    if theirs:
        handles.append(Line2D([], [], color=QUIET, alpha=0.35, label="faint: the paper's"))
    return handles
