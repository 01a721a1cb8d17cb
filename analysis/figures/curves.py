"""Training curves: the loss of every slice, by step or, for algorithms that fit block by block, along the model."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis.figures import legends
from analysis.figures.style import RC, TEXT, marker, new_figure, say, slice_style
from analysis.figures.told import tell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TOLD = 60
"""The steps of a curve that can be pointed at; all are in its data."""
TERM = re.compile(r"(?:int(\d)(?:\+ep)?|\d(?:\+ep)?->(\d)(?:\+ep)?)")
"""The name of a term's loss in train.jsonl: `int2`, `int2+ep`, `8->2`."""


def read_log(text: str) -> pd.DataFrame:
    """The steps of a train.jsonl: `step`, `block` if there is one, and the loss of every term; empty without a log."""
    steps = [record for record in map(_record, text.splitlines()) if "step" in record]
    return pd.DataFrame(steps) if steps else pd.DataFrame(columns=["step"])


def _record(line: str) -> dict[str, float]:
    """The numbers of a line; none of one that was cut short."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def terms_of(log: pd.DataFrame) -> list[str]:
    """The terms of a log, wide to narrow."""
    return sorted((str(name) for name in log if TERM.fullmatch(str(name))), key=lambda name: (-_bits(name), len(name)))


def _bits(term: str) -> int:
    found = TERM.fullmatch(term)
    assert found is not None
    return int(found[1] or found[2])


def curves_figure(logs: Mapping[str, pd.DataFrame], *, width: float = TEXT) -> Figure:
    """A panel for each cell; along the model a line goes through all steps, a marker stands at each block's end."""
    figure, grid = new_figure(width, 1.9 * max(1, len(logs)) + 0.3, max(1, len(logs)))
    with matplotlib.rc_context(RC):
        if not logs:
            say(grid[0, 0], "no training log")
        for (axes,), (name, log) in zip(grid, logs.items(), strict=False):
            axes.set_title(legends.fitting(name, width))
            if terms_of(log):
                _draw(axes, log)
            else:
                say(axes, "no training log")
        handles = _legend(dict.fromkeys(term for log in logs.values() for term in terms_of(log)))
        legends.legend_below(figure, handles)
    return figure


def _draw(axes: Axes, log: pd.DataFrame) -> None:
    by_block = "block" in log
    lengths = log.groupby("block")["step"].transform("max") + 1 if by_block else 1
    place = log["block"] + log["step"] / lengths if by_block else log["step"]
    ends = log.groupby("block")["step"].idxmax() if by_block else log.index[[]]
    for term in terms_of(log):
        style = slice_style(_bits(term))
        values = log[term].where(log[term] > 0)
        dashes = ":" if "->" in term else "-"
        if by_block:
            # A gap between blocks: the losses of two blocks are no curve.
            look = {"color": style.colour, "linewidth": 0.8, "linestyle": dashes, "alpha": 0.8}
            for numbers in log.groupby("block").groups.values():
                axes.plot(place[numbers], values[numbers], **look)
        else:
            axes.plot(place, values, color=style.colour, linewidth=0.4, alpha=0.35)
            smooth = values.ewm(span=max(2, len(values) // 40)).mean()
            axes.plot(place, smooth, color=style.colour, linewidth=1.1, linestyle=dashes)
        axes.plot(place[ends], values[ends], **marker(style, size=3))
        facts = log.reindex(columns=["block", "step"]).dropna(axis=1, how="all").assign(term=term, loss=values)
        _tell(axes, place, facts.assign(row=axes.get_title(loc="left"))[["row", "term", *facts.columns[:-2], "loss"]])
    axes.set_yscale("log")
    axes.set_xlabel("block (within a block: steps)" if by_block else "step")
    axes.set_ylabel("loss of the slice")
    axes.set_xlim(place.min() - 0.01 * np.ptp(place), place.max() + 0.01 * np.ptp(place) + 1e-9)


def _tell(axes: Axes, place: pd.Series, facts: pd.DataFrame) -> None:
    """Every step as data; words for the last step of each block, or without blocks for a part of the steps."""
    by_block = "block" in facts
    every = max(1, len(facts) // MOST_TOLD)
    shown = facts.groupby("block")["step"].idxmax() if by_block else facts.index[::every]
    chosen = facts.loc[shown].dropna(subset="loss")
    words = [
        f"{row['term']}: loss {row['loss']:.3g}\n"
        + (f"end of block {row['block']:.0f}" if by_block else f"step {row['step']:.0f}")
        for row in chosen.to_dict("records")
    ]
    tell(axes, place, facts["loss"], facts)
    tell(axes, place[chosen.index], chosen["loss"], facts.iloc[:0], words)


def _legend(terms: Mapping[str, None]) -> list[Line2D]:
    handles = []
    for term in sorted(terms, key=lambda name: (-_bits(name), len(name))):
        style = slice_style(_bits(term))
        look = {**marker(style, size=3), "linestyle": ":" if "->" in term else "-", "linewidth": 1.1}
        handles.append(Line2D([], [], color=style.colour, label=term, **look))
    return handles
