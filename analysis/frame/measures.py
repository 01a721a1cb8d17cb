"""Measures that tell quantized models apart: perplexity, divergence from the unquantized model, and flips.

Divergence is stored beside log perplexity (`evaluation.text.divergence`), flips are counted here from documents.  Both
are gaps for results that were measured without what they need, and both are left out where the teacher is in doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.frame.axes import PERPLEXITY
from evaluation.results.flips import RIGHT_TO_WRONG, WRONG_TO_RIGHT, flips_of
from evaluation.results.metrics import (
    BASE_LOG_PPLX,
    KL,
    LOG_PPLX,
    MEASURES,
    SAME_TOP,
    error_name,
)
from matquant.config.cell import EmbeddedModel, RandomModel

if TYPE_CHECKING:
    import pandas as pd

    from analysis.frame.load import LoadedResults
    from analysis.frame.significance import Outcomes
    from evaluation.results.store import Result
    from matquant.config.cell import Cell

TESTED_MEASURES = (KL, SAME_TOP)
"""The measures whose blocks are compared in pairs: means over tokens, as no percentile is."""
PARTS = ("", "_stderr", "_spread")
SAME_TEACHER = {"float32": 1e-3}
"""Nats a token by which the unquantized row may differ from the teacher, by dtype: another machine rounds otherwise."""
ROUGHLY_THE_SAME = 0.02
"""The same in 16 bits."""


# --- divergence ------------------------------------------------------------------------------------------------------


def with_sound_teachers(results: Sequence[Result], cells: Sequence[Cell]) -> tuple[list[Result], list[str]]:
    """The results without divergences from a model that is not the unquantized one of the table, and why.

    A result says which log perplexity its teacher has; the unquantized row says which it should be.
    """
    rows, kept = Unquantized(results, cells), []
    doubted: list[Result] = []
    for result in results:
        teacher = result.metrics.get(BASE_LOG_PPLX)
        other = None if teacher is None else rows.of(result)
        if teacher is None or other is None or _is_same(teacher, other):
            kept.append(result)
            continue
        doubted.append(result)
        kept.append(replace(result, metrics=_without_measures(result.metrics)))
    if not doubted:
        return kept, []
    first = doubted[0]
    number = f"{len(doubted)} read-out{'s' if len(doubted) > 1 else ''} ({first.cell_id} at {first.plan}"
    return kept, [
        f"the divergence of {number}{' and others' if len(doubted) > 1 else ''}) is from a model of "
        f"{first.metrics[BASE_LOG_PPLX]:.4f} nats a token, and the unquantized row is another one; it is left out: "
        "run the same command with readout.divergence=true after deleting the results that are out of date"
    ]


def _is_same(teacher: float, unquantized: Result) -> bool:
    most = SAME_TEACHER.get(str(unquantized.protocol.get("dtype")), ROUGHLY_THE_SAME)
    return abs(teacher - unquantized.metrics[LOG_PPLX]) <= most


def _without_measures(metrics: Mapping[str, float]) -> dict[str, float]:
    errors = {error_name(name) for name in MEASURES}
    return {name: value for name, value in metrics.items() if name not in MEASURES and name not in errors}


def measure_columns(loaded: LoadedResults, wide: pd.DataFrame) -> pd.DataFrame:
    """The columns of every measure and of perplexity, with their errors over blocks; `wide`: by cell id and plan."""
    frame = loaded.frame[loaded.frame["task"] == LOG_PPLX]
    found = {}
    for name in MEASURES:
        of_measure = frame[frame["metric"] == name].set_index(["cell_id", "plan"])
        found[name] = of_measure["value"].astype(float)
        found[f"{name}_stderr"] = of_measure["stderr"].astype(float)
    with np.errstate(over="ignore"):  # of a model that has collapsed: infinite
        found[PERPLEXITY] = np.exp(wide[LOG_PPLX])
    found[f"{PERPLEXITY}_stderr"] = found[PERPLEXITY] * wide[f"{LOG_PPLX}_stderr"]
    return wide.assign(**found)


def measures_of(loaded: LoadedResults, cell_ids: Sequence[str], plan: str) -> Outcomes:
    """The tested measures of every block, means over seeds if there are several; every seed has to have them."""
    of_seeds = [loaded.documents(cell_id, plan, LOG_PPLX) for cell_id in cell_ids if _is_sound(loaded, cell_id, plan)]
    if len(of_seeds) < len(cell_ids):
        return {}
    found = {}
    for name in TESTED_MEASURES:
        values = [documents[name] for documents in of_seeds if name in documents]
        if len(values) == len(cell_ids) and len({len(of_seed) for of_seed in values}) == 1:
            found[name] = np.mean(np.asarray(values, dtype=float), axis=0)
    return found


def _is_sound(loaded: LoadedResults, cell_id: str, plan: str) -> bool:
    """False where the divergence of a read-out is left out."""
    return (cell_id, plan) in loaded.diverging


def diverging(results: Iterable[Result]) -> frozenset[tuple[str, str]]:
    """The read-outs, by cell id and plan, that have a divergence."""
    return frozenset((result.cell_id, result.plan) for result in results if KL in result.metrics)


# --- flips -----------------------------------------------------------------------------------------------------------


def unquantized_of(results: Sequence[Result], cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """The cell of the unquantized model that each (cell, task) is compared with: of the same weights and protocol."""
    rows, found = Unquantized(results, cells), {}
    for result in results:
        other = rows.of(result)
        if other is not None and rows.have_same_weights(result, other):
            found[result.cell_id, result.task] = other.cell_id
    return found


class Unquantized:
    """The results of unquantized models, by which those of quantized ones are held."""

    def __init__(self, results: Sequence[Result], cells: Sequence[Cell]) -> None:
        self._cells = {cell.id: cell for cell in cells}
        self._models = {cell_id: cell.model.model_dump_json(exclude={"dtype"}) for cell_id, cell in self._cells.items()}
        self._results: dict[tuple[str, str], list[Result]] = {}
        for result in results:
            if self._cells[result.cell_id].base.kind == "none":
                self._results.setdefault((self._models[result.cell_id], result.task), []).append(result)

    def of(self, result: Result) -> Result | None:
        """The unquantized model's result of the same protocol; None for its own."""
        if self._cells[result.cell_id].base.kind == "none":
            return None
        others = self._results.get((self._models[result.cell_id], result.task), ())
        return next((other for other in others if other.protocol == result.protocol), None)

    def have_same_weights(self, one: Result, other: Result) -> bool:
        """False where that is not known: results of earlier versions have no fingerprints."""
        contents = (one.sources.get("model"), other.sources.get("model"))
        if None in contents:
            return isinstance(self._cells[one.cell_id].model, EmbeddedModel | RandomModel) or contents == (None, None)
        return contents[0] == contents[1]


def with_flips(rows: pd.DataFrame, loaded: LoadedResults) -> pd.DataFrame:
    """The rows of `summary` with the shares of documents that flip: by task, and their mean over the tasks of Task Avg.

    Where that mean has every task, Task Avg is that of the unquantized model, less right to wrong, plus wrong to right.
    """
    found = [_flips(row["cell_id"].split(", "), row["plan"], loaded) for row in rows.to_dict("records")]
    names = [*(f"{task}_{kind}" for task in loaded.averaged for kind in KINDS), *KINDS]
    columns = {name: [of_row.get(name, np.nan) for of_row in found] for name in names}
    return rows.assign(**columns, **{f"{kind}{part}": np.nan for kind in KINDS for part in PARTS[1:]})


KINDS = (RIGHT_TO_WRONG, WRONG_TO_RIGHT)


def _flips(cell_ids: Sequence[str], plan: str, loaded: LoadedResults) -> dict[str, float]:
    """The shares of a row by column, means over its seeds."""
    found: dict[str, float] = {}
    for task in loaded.averaged:
        seeds = [_of_task(cell_id, plan, task, loaded) for cell_id in cell_ids]
        if any(of_seed is None for of_seed in seeds):
            continue
        for kind in KINDS:
            found[f"{task}_{kind}"] = float(np.mean([of_seed[kind] for of_seed in seeds if of_seed]))
    if found and len(found) == len(KINDS) * len(loaded.averaged):
        for kind in KINDS:
            found[kind] = float(np.mean([found[f"{task}_{kind}"] for task in loaded.averaged]))
    return found


def _of_task(cell_id: str, plan: str, task: str, loaded: LoadedResults) -> dict[str, float] | None:
    other, metric = loaded.unquantized.get((cell_id, task)), loaded.metrics.get(task)
    if other is None or metric is None:
        return None
    ours, theirs = (loaded.documents(*place, task) for place in ((cell_id, plan), (other, "full")))
    if ours.get("doc_id") != theirs.get("doc_id"):
        return None
    found = flips_of(ours.get(metric), theirs.get(metric))
    return None if found is None else found.shares
