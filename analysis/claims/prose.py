"""Prose written by hand, with every number in it taken from results: placeholders are filled in when it is drawn.

    {omniquant/MatQuant (OmniQuant)/int2/log_pplx}    experiment / row, as its table prints it / plan / column
    {omniquant/MatQuant/int2/log_pplx}                without the algorithm, where one row of the plan is called so
    {qat/MatQuant/int2/task_avg - qat/Baseline (QAT)/int2/task_avg}    a difference, signed
    {qat@gemma3_270m/MatQuant/int2/log_pplx}          of one model, where the experiment has several
    {omniquant/MatQuant/base.num_steps}               a setting of the row's cell, for which nothing has to be measured

Shares are in percent, log perplexity and divergence in nats per token.  A placeholder that cannot be filled in becomes
a visible gap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from analysis.claims.evidence import signed
from analysis.frame.axes import PERPLEXITY
from analysis.frame.load import COST_COLUMNS
from analysis.frame.names import flatten
from evaluation.results.metrics import LOG_PPLX, MEASURES, TASK_AVG, is_fraction
from matquant.notation import Plan

if TYPE_CHECKING:
    from analysis.frame.opened import OpenStudy

PLACEHOLDER = re.compile(r"\{([a-z0-9_]+(?:@[a-z0-9_]+)?/(?:[^{}]|\{[^{}]*\})+)\}")
"""A placeholder; a row's own name may hold one pair of braces, as {int8: 1, int4: 1, int2: 1}."""

MINUS = " - "


def fill(text: str, opened: Mapping[str, OpenStudy]) -> str:
    """The text with every placeholder replaced by its number, or by a gap that names it."""

    def filled(match: re.Match[str]) -> str:
        return resolve(match[1], opened) or f"**[not measured yet: {match[1]}]**"

    return PLACEHOLDER.sub(filled, text)


def gaps(text: str, opened: Mapping[str, OpenStudy]) -> list[str]:
    """The placeholders that cannot be filled in."""
    return [address for address in PLACEHOLDER.findall(text) if resolve(address, opened) is None]


def resolve(address: str, opened: Mapping[str, OpenStudy]) -> str | None:
    """The text for a placeholder; None if there is no such row, or it is not measured."""
    first, minus, second = address.partition(MINUS)
    ours, theirs = number(first, opened), number(second, opened) if minus else 0.0
    if ours is None or theirs is None:
        return None if minus else setting(first, opened)
    column = first.rpartition("/")[2]
    form = ".4g" if column in COST_COLUMNS else ".3f" if column.startswith((LOG_PPLX, "kl")) else ".1f"
    return signed(ours - theirs, form) if minus else f"{ours:{form}}"


def number(address: str, opened: Mapping[str, OpenStudy]) -> float | None:
    """A number of a table, in the unit that the table prints it in."""
    (experiment, model), place = _place(address)
    parts = place.rsplit("/", 2)
    if experiment not in opened or len(parts) != 3:
        return None
    rows, (name, plan, column) = opened[experiment].rows, parts
    rows = rows[rows["model"] == model] if model else rows
    if rows.empty:
        return None
    found = named(rows[rows["plan"].map(Plan.typed) == plan], name)
    loaded = opened[experiment].loaded
    known = (*loaded.tasks, TASK_AVG, LOG_PPLX, PERPLEXITY, *MEASURES, *COST_COLUMNS)
    if len(found) != 1 or _value_of(column) not in known:
        return None
    row = found.iloc[0]
    # The bits of a width are known before anything is measured; the text shows measured rows only.
    value = math.nan if pd.isna(row[[TASK_AVG, LOG_PPLX]]).all() else float(row[column])
    metric = loaded.metrics.get(_value_of(column), _value_of(column))
    return None if math.isnan(value) else 100 * value if is_fraction(metric) else value


def _value_of(column: str) -> str:
    """The value that an error belongs to: `_stderr` is over documents, `_spread` over seeds."""
    return column.removesuffix("_stderr").removesuffix("_spread")


def setting(address: str, opened: Mapping[str, OpenStudy]) -> str | None:
    """A setting by its dotted key; None unless all cells of that name have the same."""
    (experiment, model), place = _place(address)
    name, _, key = place.rpartition("/")
    if experiment not in opened:
        return None
    study = opened[experiment]
    ids = set(named(study.loaded.expected, name)["cell_id"])
    cells = [cell for cell in study.study.cells if cell.id in ids and model in ("", cell.model.name)]
    facts = [dict(flatten(cell.model_dump(mode="json"))) for cell in cells]
    values = {of_cell.get(key) for of_cell in facts}
    return values.pop() if len(values) == 1 else None


def _place(address: str) -> tuple[tuple[str, str], str]:
    """The experiment of an address and its model, empty if it names none; and the rest."""
    experiment, _, place = address.strip().partition("/")
    name, _, model = experiment.partition("@")
    return (name, model), place


def named(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a label; if none has it, those of a method of this name."""
    labelled = rows[rows["label"].str.casefold() == name.casefold()]
    return labelled if len(labelled) else rows[rows["method"].str.casefold() == name.casefold()]
