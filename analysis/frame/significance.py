"""Tests for a difference of two read-outs: both were measured on the same documents, which are compared in pairs.

    one task, accuracy      McNemar's exact test on the documents that only one of the two got right
    Task Avg                paired bootstrap: documents are drawn anew within each task, the tasks stay
    log perplexity          paired bootstrap over blocks of text

Pairing removes the error that comes from documents being hard or easy for every model, which is most of the error of
a single accuracy.  None of this covers training again with another seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.results.store import LOG_PPLX, headline_metric

if TYPE_CHECKING:
    import pandas as pd

    from analysis.frame.load import LoadedResults

TASK_AVG = "task_avg"
LEVEL = 0.05
DRAWS = 10_000
DIGITS = 12
"""The digits kept of a drawn difference; further ones are rounding errors, which differ between processors."""

ROWS_AT_ONCE = 4_000_000
"""Numbers that a bootstrap has in memory at the same time."""
COLUMNS = ("model", "plan", "row", "reference", "task", "difference", "stderr", "p_value", "num_documents", "test")


@dataclass(frozen=True)
class Difference:
    """A difference: `mean` is ours minus theirs, as a fraction or in nats per token; `p_value` is two-sided."""

    mean: float
    stderr: float
    p_value: float
    num_documents: int
    test: str

    @property
    def significant(self) -> bool:
        return self.p_value < LEVEL


def mcnemar(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Accuracy of two read-outs on the same documents, each right (1) or wrong (0).

    Of the documents on which they disagree, half would go either way if both were as good: the p-value is that of an
    exact binomial test (McNemar 1947).
    """
    from scipy.stats import binomtest

    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    disagreements = int(np.abs(differences).sum())
    p_value = binomtest(int((differences > 0).sum()), disagreements).pvalue if disagreements else 1.0
    stderr = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.nan
    return Difference(float(differences.mean()), float(stderr), float(p_value), len(differences), "McNemar")


def paired_bootstrap(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """The mean over strata (tasks) of the mean difference of their documents, and its scatter over other documents.

    `pairs`: for each stratum our and their value of every document.  The p-value counts how often the difference of a
    drawn sample has the other sign, twice; it is never below 2 / (draws + 1).
    """
    rng = np.random.default_rng(seed)
    strata = [np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float) for ours, theirs in pairs]
    scattered = np.mean([_means_of_draws(differences, draws, rng) for differences in strata], axis=0)
    # A draw in which tasks cancel out is a tie and counts on both sides; rounding errors would make it a win or a loss.
    scattered = scattered.round(DIGITS)
    tail = min((scattered <= 0).sum(), (scattered >= 0).sum())
    return Difference(
        mean=float(np.mean([differences.mean() for differences in strata])),
        stderr=float(scattered.std(ddof=1)),
        p_value=float(min(1.0, 2 * (tail + 1) / (draws + 1))),
        num_documents=sum(map(len, strata)),
        test="paired bootstrap",
    )


def _means_of_draws(differences: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means of samples with replacement; drawn as counts of each distinct value, of which accuracies have three."""
    values, counts = np.unique(differences, return_counts=True)
    num = len(differences)
    at_once = max(1, ROWS_AT_ONCE // len(values))
    parts = [
        rng.multinomial(num, counts / num, size=min(at_once, draws - done)) @ values / num
        for done in range(0, draws, at_once)
    ]
    return np.concatenate(parts)


# --- rows of a table -------------------------------------------------------------------------------------------------

Outcomes = Mapping[str, np.ndarray]
"""The values of every document, by task; means over seeds if there are several."""


def against_reference(rows: pd.DataFrame, loaded: LoadedResults) -> pd.DataFrame:
    """Every row of `summary.summary` against the reference row of its model and data type: COLUMNS, the row's index.

    The reference is the explicit Baseline of that width, where there is one, else the sliced parent; of the same base
    algorithm and scope, where there is one.  A Baseline has no reference.
    """
    import pandas as pd  # imported here: comparing two read-outs needs no table

    found = []
    for _, group in rows[rows["base"] != "none"].groupby(["model", "bits", "plan"], sort=False):
        measured = {index: outcomes(loaded, row) for index, row in group.iterrows()}
        for index in group.index:
            reference = _reference(group, index)
            if reference is None:
                continue
            for task, difference in differences(measured[index], measured[reference]).items():
                found.append(
                    {
                        "index": index,
                        **{name: group.at[index, name] for name in ("model", "plan")},
                        "row": group.at[index, "label"],
                        "reference": group.at[reference, "label"],
                        "task": task,
                        "difference": difference.mean,
                        **{name: getattr(difference, name) for name in COLUMNS[6:]},
                    }
                )
    return pd.DataFrame(found, columns=["index", *COLUMNS]).set_index("index")


def _reference(group: pd.DataFrame, index: Any) -> Any | None:
    """The row that another one is held against: of its algorithm and scope before others, a Baseline before Sliced."""
    row = group.loc[index]
    if row["method"].startswith("Baseline"):
        return None
    baseline = group["method"].str.startswith("Baseline")
    candidates = group[baseline | (group["method"].str.startswith("Sliced") & (group.index != index))]
    if candidates.empty:
        return None
    import pandas as pd

    distance = pd.DataFrame(
        {
            "base": candidates["base"] != row["base"],
            "scope": candidates["scope"] != row["scope"],
            "sliced": ~baseline[candidates.index],
        }
    )
    return distance.sort_values(list(distance.columns), kind="stable").index[0]


def outcomes(loaded: LoadedResults, row: pd.Series) -> Outcomes:
    """The outcomes of every document behind a row of the table; tasks without stored documents are left out."""
    return outcomes_of(loaded, row["cell_id"].split(", "), row["plan"])


def outcomes_of(loaded: LoadedResults, cell_ids: Sequence[str], plan: str) -> Outcomes:
    """The outcomes of cells that differ in their seed alone, averaged over seeds."""
    found = {}
    for task in (*loaded.tasks, LOG_PPLX):
        seeds = [document_values(loaded.documents(cell_id, plan, task)) for cell_id in cell_ids]
        values = [of_seed for of_seed in seeds if of_seed is not None]
        if values and len({len(of_seed) for of_seed in values}) == 1:
            found[task] = np.mean(values, axis=0)
    return found


def document_values(documents: Mapping[str, Sequence[Any]]) -> np.ndarray | None:
    """The headline metric of every document; None for a task without a number for each."""
    name = headline_metric(name for name in documents if name != "doc_id")
    if name is None or any(value is None for value in documents[name]):
        return None
    return np.asarray(documents[name], dtype=float)


def differences(ours: Outcomes, theirs: Outcomes) -> dict[str, Difference]:
    """Differences in every task that both have on equally many documents, in Task Avg if those are all, in log pplx."""
    common = [task for task in ours if task in theirs and len(ours[task]) == len(theirs[task])]
    tasks = [task for task in common if task != LOG_PPLX]
    found = {task: _of_task(ours[task], theirs[task]) for task in tasks}
    if tasks and len(tasks) == len([task for task in {**ours, **theirs} if task != LOG_PPLX]):
        found[TASK_AVG] = paired_bootstrap([(ours[task].tolist(), theirs[task].tolist()) for task in tasks])
    if LOG_PPLX in common:
        found[LOG_PPLX] = paired_bootstrap([(ours[LOG_PPLX].tolist(), theirs[LOG_PPLX].tolist())])
    return found


def _of_task(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """McNemar where every document is right or wrong; means over seeds and graded answers are bootstrapped."""
    if set(np.unique([ours, theirs])) <= {0.0, 1.0}:
        return mcnemar(ours.tolist(), theirs.tolist())
    return paired_bootstrap([(ours.tolist(), theirs.tolist())])
