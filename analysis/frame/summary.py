"""The numbers of a study: a row for every read-out of every cell, with its tasks, their average and log perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.frame.axes import PERPLEXITY
from analysis.frame.conventions import is_of_windows, windows_note
from analysis.frame.load import COST_COLUMNS
from analysis.frame.measures import measure_columns
from analysis.frame.names import IDENTITY_COLUMNS, TASK_NAMES
from evaluation.results.metrics import LOG_PPLX, MEASURES, TASK_AVG, is_fraction
from evaluation.results.readouts import is_of_tuning_text
from evaluation.results.store import BLOCK_SHARE
from evaluation.sources.table import PAPER_TASKS
from matquant.notation import share_text

if TYPE_CHECKING:
    from analysis.frame.load import LoadedResults

SummaryRow = Mapping[Any, Any]
"""A row of `summary`, by column name."""

METHOD_ORDER = ("Sliced", "Baseline", "Single Precision", "MatQuant")
CHANCE = {name: task.chance for name, task in PAPER_TASKS.items()}
"""The accuracy of a guess, by task."""


def summary(loaded: LoadedResults) -> pd.DataFrame:
    """A row per (configuration, plan), wide to narrow, methods in the paper's order; NaN where a result is missing.

    Columns: IDENTITY_COLUMNS, COST_COLUMNS, `num_seeds`, `notes`, and for each task, `task_avg`, `log_pplx`,
    `perplexity` and the measures against the unquantized model (`analysis.frame.measures`) the value, its `_stderr`
    over documents and its `_spread` over seeds.  Configurations that differ only in their seed are one row: the means
    over their seeds of the value and of its standard error, and the standard deviation between the seeds.  Every seed
    answers the same documents, so that its standard error does not shrink with their number.
    """
    reads = loaded.expected.drop(columns="task").drop_duplicates(["cell_id", "plan"])
    rows = reads.merge(_wide(loaded), on=["cell_id", "plan"], how="left")
    rows["effective_bits"] = rows["effective_bits"].fillna(rows["bits"].where(~rows["extra_precision"].astype(bool)))
    averaged = list(loaded.averaged)
    errors = rows[[f"{task}_stderr" for task in averaged]]
    rows[TASK_AVG] = rows[averaged].mean(axis=1, skipna=False) if averaged else np.nan
    rows[f"{TASK_AVG}_stderr"] = stderr_of_mean(errors.to_numpy(dtype=float))
    rows.loc[rows[TASK_AVG].isna(), f"{TASK_AVG}_stderr"] = np.nan
    values = [*loaded.tasks, TASK_AVG, LOG_PPLX]
    numbers = (name for value in (*values, *BESIDE) for name in (value, f"{value}_stderr", f"{value}_spread"))
    columns = [*IDENTITY_COLUMNS, *COST_COLUMNS, "num_seeds", "notes", *numbers]
    rows = rows.assign(
        notes=pd.Series([_notes(loaded, row) for row in rows.to_dict("records")], rows.index, dtype=object)
    )
    return _in_paper_order(_saying_share(_one_row_a_configuration(rows, values).reindex(columns=columns)))


def _saying_share(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the share of the block weights in the label of those that quantize a part of their scope."""
    shares = [("" if pd.isna(share) else f", {partial_text(share)}") for share in rows[BLOCK_SHARE]]
    return rows.assign(label=rows["label"].str.cat(shares), name=rows["name"].str.cat(shares))


def partial_text(share: float) -> str:
    """`12 % of block weights`."""
    return f"{share_text(share)} of block weights"


def stderr_of_mean(stderrs: np.ndarray) -> np.ndarray:
    """Standard error of the plain mean of n independent estimates, along the last axis: sqrt(sum se_i^2) / n."""
    if stderrs.shape[-1] == 0:
        return np.full(stderrs.shape[:-1], np.nan)
    return np.sqrt(np.square(stderrs).sum(axis=-1)) / stderrs.shape[-1]


def stderr_of_share(share: float, num_documents: int) -> float:
    """The standard error of a share of right answers that is 0 or 1, where the usual estimate is zero.

    That of two more right and two more wrong answers (Agresti and Coull 1998): 20 right answers of 20 do not mean that
    the next one is right for certain.
    """
    adjusted = (share * num_documents + 2) / (num_documents + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (num_documents + 4))


BESIDE = (PERPLEXITY, *MEASURES)
"""What stands beside log perplexity; a row that lacks it, of an earlier version, is complete all the same."""


def headline_results(loaded: LoadedResults) -> pd.DataFrame:
    """The rows of the frame that stand for their task: one for each (cell, plan, task), of its headline metric."""
    return loaded.frame[loaded.frame["is_headline"].astype(bool)]


def _wide(loaded: LoadedResults) -> pd.DataFrame:
    """A row per measured (cell, plan): its bits, and for each task its value and standard error."""
    long = headline_results(loaded).set_index(["cell_id", "plan"])
    wide = long[list(COST_COLUMNS)].astype(float).groupby(level=[0, 1]).first()
    for task in (*loaded.tasks, LOG_PPLX):
        of_task = long[long["task"] == task]
        wide[task] = of_task["value"].astype(float)
        wide[f"{task}_stderr"] = _stderrs(of_task)
    return measure_columns(loaded, wide).reset_index()


def _stderrs(of_task: pd.DataFrame) -> pd.Series:
    """The standard errors over documents; those of shares of all or none by `stderr_of_share`."""
    found = of_task["stderr"].astype(float)
    certain = of_task["metric"].map(is_fraction).astype(bool) & of_task["value"].isin([0.0, 1.0])
    adjusted = [
        stderr_of_share(value, documents)
        for value, documents in of_task.loc[certain, ["value", "num_documents"]].itertuples(index=False, name=None)
    ]
    return found.mask(certain, pd.Series(adjusted, found.index[certain], dtype=float)) if adjusted else found


def _notes(loaded: LoadedResults, row: SummaryRow) -> tuple[str, ...]:
    """Facts that a reader of a row has to know: marked at the row, printed once below the table."""
    certain = [CERTAIN_NOTE for task in loaded.averaged if row[task] in (0.0, 1.0)]
    key = loaded.keys.get((row["cell_id"], row["plan"], LOG_PPLX))
    tuning = [TUNING_NOTE] if key is not None and is_of_tuning_text(key.protocol) else []
    windows = [windows_note(key.protocol)] if key is not None and is_of_windows(key.protocol) else []
    older = [OLDER_COUNT_NOTE] if (row["cell_id"], row["plan"]) in loaded.by_older_count else []
    return (*certain[:1], *tuning, *windows, *older)


OLDER_COUNT_NOTE = (
    "its + overflow and Stored are as they were stored, perhaps by an older count of a bit for every weight: the "
    "codes.json of its cell, which they are counted anew from, is missing or of another checkpoint; or scales of 16 "
    "bits are charged as if they had 32"
)


TUNING_NOTE = "log pplx is of tuning text, on which defaults are chosen; no document of it is test text"
CERTAIN_NOTE = (
    "all answers of a task are right, or all are wrong: its standard error is that of two more right and two more "
    "wrong ones (Agresti and Coull)"
)


def _one_row_a_configuration(rows: pd.DataFrame, values: Sequence[str]) -> pd.DataFrame:
    """Seeds of one configuration become one row; a configuration of one seed stays as it is."""
    keys = ["config_id", "plan"]
    rows = rows.assign(num_seeds=1, **{f"{value}_spread": np.nan for value in (*values, *BESIDE)})
    alone = ~rows.duplicated(keys, keep=False)
    merged = [_over_seeds(seeds, values) for _, seeds in rows[~alone].groupby(keys, sort=False)]
    if not merged:
        return rows
    # A merged row takes the place of its first seed.
    dtypes: dict[Any, Any] = rows.drop(columns="effective_bits").dtypes.to_dict()
    together = pd.DataFrame(merged, index=[row.name for row in merged]).astype(dtypes)
    return pd.concat([rows[alone], together]).sort_index()


def _over_seeds(seeds: pd.DataFrame, values: Sequence[str]) -> pd.Series:
    """One row out of the rows of a configuration's seeds: the mean of those that have every value that one has.

    If no seed has them all, the one with most values stands alone: a mean of other seeds in each column would not be
    of any model.
    """
    first = seeds.index[0]
    counts = seeds[list(values)].notna().sum(axis=1)
    complete = seeds[(counts > 0) & (counts == seeds[list(values)].notna().any().sum())]
    left_out = int((counts > 0).sum()) - max(len(complete), 1)
    seeds = complete if len(complete) else seeds.loc[[counts.idxmax()]]
    row = seeds.iloc[0].copy().rename(first)
    row["num_seeds"] = len(seeds)
    row["notes"] = tuple(dict.fromkeys(note for notes in seeds["notes"] for note in notes))
    if left_out > 0:
        row["notes"] = (*row["notes"], f"without {left_out} more of its seeds, which lack some of the tasks")
    if len(seeds) > 1:
        row["cell_id"] = ", ".join(seeds["cell_id"])
        for column in COST_COLUMNS:
            row[column] = seeds[column].mean()
        for value in values:
            row[value] = seeds[value].mean()
            row[f"{value}_stderr"] = seeds[f"{value}_stderr"].mean(skipna=False)
            row[f"{value}_spread"] = seeds[value].std(ddof=1)
        for value in BESIDE:  # of all of these seeds, or of none
            row[value] = seeds[value].mean(skipna=False)
            row[f"{value}_stderr"] = seeds[f"{value}_stderr"].mean(skipna=False)
            row[f"{value}_spread"] = seeds[value].std(ddof=1, skipna=False)
    return row


def method_rank(method: str) -> int:
    """Position of a method among the rows of one data type; a model without quantization comes first."""
    return next((rank for rank, name in enumerate(METHOD_ORDER, start=1) if method.startswith(name)), 0)


def _in_paper_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Model by model, wide to narrow, methods in the paper's order; ties stay as the experiment lists them."""
    models = {model: place for place, model in enumerate(rows["model"].unique())}
    keys = pd.DataFrame(
        {
            "model": rows["model"].map(models),
            "bits": -rows["bits"],
            "extra_precision": rows["extra_precision"],
            "method": rows["method"].map(method_rank),
            "variant": rows["method"].str.len(),
        }
    )
    return rows.loc[keys.sort_values(list(keys.columns), kind="stable").index].reset_index(drop=True)


def task_name(task: str) -> str:
    """The name of a task in tables: the paper's, or its own."""
    return TASK_NAMES.get(task, task)


def data_type(row: SummaryRow) -> str:
    """The width a row is read at, as the paper's first column names it: `int2`, or `bfloat16` for the full model."""
    return row["method"] if row["base"] == "none" else row["plan"]
