"""The answers of a study as one figure: every difference that a margin decides, its interval, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from analysis.claims.cases import findings
from analysis.claims.questions import Asked
from analysis.figures import legends
from analysis.figures.gallery import Plot
from analysis.figures.style import INK, QUIET, RC, TEXT, Style, marker, new_figure
from analysis.figures.told import tell
from evaluation.results.metrics import LOG_PPLX

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.claims.cases import Opened
    from analysis.claims.definition import StudyDefinition
    from analysis.claims.verdicts import Word

NAME = "answers"
LINE = 0.135
"""Inches of height for a case, or for the words of a claim."""
LINEAR = 0.1
"""Nats around zero that are drawn in proportion; differences beyond are drawn by their logarithm."""
TICKS = (-10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10)
STYLES: dict[Word, Style] = {
    "holds": Style("holds", "#009E73", "o"),
    "does not hold": Style("does not hold", "#C8480A", "X"),
    "cannot be told at this scale": Style("cannot be told", QUIET, "s"),
}


@dataclass(frozen=True)
class Row:
    """A line of the figure: the words of a claim, or one of its cases with what was found."""

    words: str
    found: Asked | None = None


def rows_of(study: StudyDefinition, opened: Opened) -> list[Row]:
    """The claims that margins decide, each with those of its cases that are measured."""
    rows: list[Row] = []
    for claim in study.claims:
        found = findings(claim, opened, study.background)
        pairs = zip(claim.cases, found, strict=True)
        decided = ((case, one) for case, one in pairs if isinstance(one, Asked) and one.question.margin)
        # Of one block there is no interval, and nothing to draw.
        asked = [Row(case.where, one) for case, one in decided if isfinite(one.question.shifts[LOG_PPLX].stderr)]
        if asked:
            rows += [Row(claim.words), *asked]
    return rows


def intervals_plot(study: StudyDefinition, opened: Opened) -> Plot | None:
    """The figure as others of a document are given; None if margins have decided nothing yet."""
    rows = rows_of(study, opened)
    note = (
        "Ours minus the other's, in nats a token, so that left of 0 is better; bars are 95 % intervals of blocks and "
        "seeds, not corrected for the number of cases, and pale bands the margin within which two rows are alike. "
        "Verdicts are corrected, and QAT's need the divergence to agree, which is not drawn. The scale is linear "
        "within 0.1 nats, and logarithmic beyond."
    )
    title = "Every difference that was asked for, with the verdict on its case"
    return Plot(NAME, title, note, lambda width: intervals_figure(rows, width), (TEXT,)) if rows else None


def intervals_figure(rows: Sequence[Row], width: float = TEXT) -> Figure:
    """A line for each row, from top to bottom: marker at the difference, bar over its interval, band of its margin."""
    figure, grid = new_figure(width, LINE * (len(rows) + 6))
    with matplotlib.rc_context(RC):
        axes = grid[0, 0]
        for place, row in enumerate(rows):
            if row.found is not None:
                _draw(axes, -place, row.found)
        _axes(axes, rows)
        legends.legend_below(figure, _legend(rows))
    return figure


def _draw(axes: Axes, place: int, found: Asked) -> None:
    difference, style = found.question.shifts[LOG_PPLX], STYLES[found.verdict.word]
    (low, high), margin = difference.interval, found.question.margin
    assert margin is not None
    axes.fill_betweenx([place - 0.5, place + 0.5], -margin, margin, color=QUIET, alpha=0.18, linewidth=0)
    axes.plot([low, high], [place, place], color=style.colour, linewidth=1.1)
    axes.plot([difference.mean], [place], **_look(style))


def _axes(axes: Axes, rows: Sequence[Row]) -> None:
    ends = [end for row in rows if row.found is not None for end in row.found.question.shifts[LOG_PPLX].interval]
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.7)
    low, high = min(ends), max(ends)
    axes.set_xlim(min(1.3 * low, -0.15), max(1.3 * high, 0.15))
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:+g}".replace("-", "−") if tick else "0"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("difference (nats per token)")
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_yticks(range(0, -len(rows), -1), [row.words if row.found else "" for row in rows])
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    axes.spines["left"].set_visible(False)
    _headings(axes, rows)
    measured = {-place: row for place, row in enumerate(rows) if row.found is not None}
    tell(axes, [_mean(row) for row in measured.values()], list(measured), _facts([*measured.values()]))


def _headings(axes: Axes, rows: Sequence[Row]) -> None:
    """The words of each claim from the left edge of the figure on, across the panel, which is empty in that line."""
    figure = axes.get_figure()
    assert figure is not None
    across = blended_transform_factory(figure.transFigure, axes.transData)
    for place, row in enumerate(rows):
        if row.found is None:
            words = axes.text(0.008, -place, row.words, transform=across, fontsize=6.5, fontweight="bold", va="center")
            words.set_in_layout(False)


def _mean(row: Row) -> float:
    assert row.found is not None
    return row.found.question.shifts[LOG_PPLX].mean


def _facts(rows: Sequence[Row]) -> pd.DataFrame:
    """The figure's data, as its CSV has them."""
    facts = []
    for row in rows:
        assert row.found is not None
        low, high = row.found.question.shifts[LOG_PPLX].interval
        facts.append(
            {
                "case": row.words,
                "difference": _mean(row),
                "low": low,
                "high": high,
                "margin": row.found.question.margin,
                "verdict": row.found.verdict.word,
            }
        )
    return pd.DataFrame(facts)


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    words = {row.found.verdict.word for row in rows if row.found is not None}
    shown = [style for word, style in STYLES.items() if word in words]
    return [Line2D([], [], label=style.name, **_look(style)) for style in shown]


def _look(style: Style) -> dict[str, Any]:
    """A marker in the style of a verdict; hollow where there is none."""
    return marker(style, hollow=style is STYLES["cannot be told at this scale"], size=3.8)
