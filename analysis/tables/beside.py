"""Ours beside theirs: every number of one of the paper's tables with the read-out of ours that is the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import published
from analysis.frame import grids
from analysis.frame.best import BEST
from analysis.published import RUN, Version
from evaluation.results.metrics import LOG_PPLX, TASK_AVG
from evaluation.results.store import BLOCK_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BITS = "effective_bits"
METRICS = (BITS, *published.TASKS, TASK_AVG, LOG_PPLX)
"""The metrics that a table prints, in the order of its columns."""

ROOT = f"{2**0.5:g}"
"""The square root of two, which version 1 writes as such, as our rows write a weight."""

COLUMNS = (
    *("version", "table", *RUN, "metric", "paper", "decimals", "should_read", "error"),
    *(
        "ours",
        "stderr",
        "spread",
        "num_seeds",
        "difference",
        "mark",
        "best",
        "notes",
        "cell_id",
        BLOCK_SHARE,
        "grid",
        "otherwise",
    ),
)


def side_by_side(
    number: int,
    rows: pd.DataFrame,
    marks: Mapping[Any, Mapping[str, str]] | None = None,
    *,
    version: Version = "v3",
    otherwise: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """COLUMNS for every number of Table `number`, in the paper's order; percent and nats, `ours` NaN where missing.

    `difference` is ours minus what the paper should read, where it is known to be wrong, else what it prints; there is
    none for a metric in `otherwise` (`analysis.frame.otherwise`), which says why ours is another quantity.
    `rows`: of `summary`; `marks`: of `significant_marks`, by row.  A model of ours that the paper does not have
    gets the same rows without a number of the paper.
    """
    printed = published.table(number, version)
    printed = pd.concat([printed, *_for_other_models(printed, rows)], ignore_index=True)
    with_weights = varies_weights(printed)
    ours = runs(rows, with_weights=with_weights)
    found = [
        _entry(row["metric"], ours.get(_key(row, with_weights=with_weights), []), rows, marks or {})
        for row in printed.to_dict("records")
    ]
    theirs = printed.drop(columns="paper").rename(columns={"value": "paper"})
    entries = pd.concat([theirs, pd.DataFrame(found, index=printed.index)], axis=1)
    meant = entries["should_read"].fillna(entries["paper"])
    entries = _naming_grids(entries).assign(
        otherwise=[(otherwise or {}).get(metric, "") for metric in entries["metric"]]
    )
    difference = (entries["ours"] - meant).where(entries["otherwise"] == "")
    return entries.assign(difference=difference)[list(COLUMNS)]


def _naming_grids(entries: pd.DataFrame) -> pd.DataFrame:
    """The entries, with a note of its grid on each of ours where they differ in it."""
    measured = entries["ours"].notna() & (entries["grid"] != "")
    if entries.loc[measured, "grid"].nunique() < 2:
        return entries
    notes = [
        (f"grid of ours: {grid}", *notes) if named else notes
        for grid, notes, named in zip(entries["grid"], entries["notes"], measured, strict=True)
    ]
    return entries.assign(notes=pd.Series(notes, entries.index, dtype=object))


def varies_weights(printed: pd.DataFrame) -> bool:
    """True for the tables of the re-weighting ablation, whose rows differ in nothing but lambda."""
    keys = [column for column in RUN if column != "weights"]
    return bool(printed.duplicated([*keys, "metric"]).any())


def runs(rows: pd.DataFrame, *, with_weights: bool) -> dict[tuple[str, ...], list[Any]]:
    """The rows of `summary` by their run, as published tables name it."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        method = "bfloat16" if row["base"] == "none" else row["method"]
        key = _key({**row, "method": method, "width": row["plan"]}, with_weights=with_weights)
        found.setdefault(key, []).append(index)
    return found


def _key(row: Mapping[Any, Any], *, with_weights: bool) -> tuple[str, ...]:
    facts = {**row, "weights": row["weights"].replace("sqrt2", ROOT) if with_weights else ""}
    return tuple(facts[name] for name in RUN)


def _for_other_models(printed: pd.DataFrame, rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of the first printed model once more for each model that only we have."""
    first = printed[printed["model"] == printed["model"].iloc[0]]
    others = [model for model in rows["model"].unique() if model not in set(printed["model"])]
    blank = {"value": float("nan"), "should_read": float("nan"), "error": "", "decimals": -1}
    return [first.assign(model=model, **blank) for model in others]


def _entry(metric: str, indices: Sequence[Any], rows: pd.DataFrame, marks: Mapping[Any, Any]) -> dict[str, Any]:
    """Our measurement of one printed number; of several runs of one name the first, as the experiment lists them."""
    if not indices or metric not in rows:
        gap = dict.fromkeys(("ours", "stderr", "spread", BLOCK_SHARE), float("nan"))
        return {**gap, "num_seeds": 0, "mark": "", "best": False, "notes": (), "cell_id": "", "grid": ""}
    measured = rows.loc[indices[0]]
    rivals = [grids.text_of(rows.loc[index].to_dict()) for index in indices]
    others = list(dict.fromkeys(grid for grid in rivals if grid != rivals[0]))
    labels = list(dict.fromkeys(str(rows.loc[index, "label"]) for index in indices))
    chosen = (f"the first of several grids: {rivals[0]}; not shown: {'; '.join(others)}",) if others else ()
    if not others and len(labels) > 1:
        chosen = (f"the first of {len(labels)} such rows: {labels[0]}; not shown: {'; '.join(labels[1:])}",)
    scale = 1 if metric in (BITS, LOG_PPLX) else 100
    missing = pd.isna(measured[metric]) or (metric == BITS and pd.isna(measured[[TASK_AVG, LOG_PPLX]]).all())
    return {
        "ours": float("nan") if missing else scale * float(measured[metric]),
        "stderr": scale * float(measured.get(f"{metric}_stderr", float("nan"))),
        "spread": scale * float(measured.get(f"{metric}_spread", float("nan"))),
        "num_seeds": 0 if missing else int(measured["num_seeds"]),
        "mark": marks.get(indices[0], {}).get(metric, ""),
        "best": metric in measured.get(BEST, ()),
        "notes": () if missing else (*chosen, *measured["notes"]),
        "cell_id": measured["cell_id"],
        BLOCK_SHARE: measured.get(BLOCK_SHARE, float("nan")),
        "grid": rivals[0],
    }
