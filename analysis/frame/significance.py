"""Tests for a difference of two read-outs: both were measured on the same documents, which are compared in pairs.

    one task, right or wrong      McNemar's exact test on the documents that only one of the two got right
    at most 20 that differ        exact sign flips: every way in which documents, or blocks of text, could have gone
    more                          paired t-test; of several tasks with the degrees of freedom of Welch and Satterthwaite

Tasks weigh alike in Task Avg, whatever their number of documents.  All three are valid for few documents, where a
bootstrap is not: it finds four blocks that agree significant.  Five or fewer cannot show a difference (2 / 2^5 > 0.05).

Pairing removes the error that comes from documents being hard or easy for every model, which is most of the error of
a single accuracy.  None of this covers training again with another seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.frame import grids
from analysis.frame.measures import TESTED_MEASURES, measures_of
from evaluation.results.metrics import LOG_PPLX, TASK_AVG

if TYPE_CHECKING:
    import pandas as pd

    from analysis.frame.load import LoadedResults

LEVEL = 0.05
FEW = 20
"""The most documents that differ for which all sign flips are counted: 2^20 of them."""

FEWEST = 6
"""The least number of documents that can show a difference: the smallest p-value of n documents is 2 / 2^n."""

DIGITS = 12
"""The digits kept of a sum of differences; further ones are rounding errors, which would make a tie a win or a loss."""

COLUMNS = (
    *("model", "plan", "row", "reference", "task", "difference", "stderr", "p_value", "num_documents", "test"),
    *("higher_is_better", "grid", "reference_grid"),
)
TESTED_METRICS = {name: name for name in (TASK_AVG, LOG_PPLX, *TESTED_MEASURES)}
"""What is tested besides single tasks; each is its own metric."""

TESTED = ("stderr", "p_value", "num_documents", "test")


@dataclass(frozen=True)
class Difference:
    """A difference: `mean` is ours minus theirs, as a fraction or in nats per token; `p_value` is two-sided.

    `freedom`: the degrees of freedom of its standard error.
    """

    mean: float
    stderr: float
    p_value: float
    num_documents: int
    test: str
    freedom: float = math.inf

    @property
    def significant(self) -> bool:
        return self.p_value < LEVEL


def quantile(freedom: float, level: float = LEVEL) -> float:
    """The standard errors to each side of an interval: Student's t, 1.96 for many documents and 6.08 / sqrt 2 for 2."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf(1 - level / 2)
    from scipy.stats import t

    return float(t.ppf(1 - level / 2, freedom))


def mcnemar(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Accuracy of two read-outs on the same documents, each right (1) or wrong (0).

    Of the documents on which they disagree, half would go either way if both were as good: the p-value is that of an
    exact binomial test (McNemar 1947).
    """
    from scipy.stats import binomtest

    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    disagreements = int(np.abs(differences).sum())
    p_value = binomtest(int((differences > 0).sum()), disagreements).pvalue if disagreements else 1.0
    spread = Spread.of([differences], [True])
    mean, num = float(differences.mean()), len(differences)
    return Difference(mean, spread.stderr, float(p_value), num, f"McNemar{_hint(num)}", spread.freedom)


def paired_test(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """The mean over strata (tasks) of the mean difference of their documents.

    `pairs`: for each stratum our and their value of every document.
    """
    strata = [np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float) for ours, theirs in pairs]
    shares_of_right = [_are_shares(ours) and _are_shares(theirs) for ours, theirs in pairs]
    spread, mean = Spread.of(strata, shares_of_right), float(np.mean([differences.mean() for differences in strata]))
    num = sum(map(len, strata))
    parts = np.concatenate([differences / len(differences) / len(strata) for differences in strata])
    parts = parts[parts != 0]
    if len(parts) <= FEW:
        p_value, test = sign_flips(parts), f"exact sign flips{_hint(num)}"
    elif math.isnan(spread.stderr):
        p_value, test = 1.0, "none: a task has one document"
    else:
        p_value, test = spread.p_value(mean, len(parts)), "paired t"
    return Difference(mean, spread.stderr, p_value, num, test, spread.freedom)


def guess_test(strata: Sequence[tuple[Sequence[float], float]]) -> Difference:
    """The mean over tasks of accuracy less that of a guess: `strata` has the answers (right 1, wrong 0) and the chance.

    The p-value is that of guesses: exact where all tasks have equally many documents, else by their normal limit.
    """
    answers = [np.asarray(values, dtype=float) for values, _ in strata]
    numbers, chances = [len(values) for values in answers], [chance for _, chance in strata]
    excess = np.array([values.mean() - chance for values, chance in zip(answers, chances, strict=True)])
    mean, spread = float(excess.mean()), Spread.of(answers, [True] * len(answers))
    whole = all(np.isin(values, (0, 1)).all() for values in answers)
    p_value = _exact_guesses(excess, numbers[0], chances) if whole and len(set(numbers)) == 1 else math.nan
    if math.isnan(p_value):
        from scipy.stats import norm

        squares = [chance * (1 - chance) / number for chance, number in zip(chances, numbers, strict=True)]
        p_value = 2 * float(norm.sf(abs(mean) * len(strata) / math.sqrt(sum(squares))))
    return Difference(mean, spread.stderr, p_value, sum(numbers), "guesses", spread.freedom)


def _exact_guesses(excess: np.ndarray, number: int, chances: Sequence[float]) -> float:
    """The probability that guesses at so many documents a task are as far from what is expected of them."""
    from scipy.stats import binom

    shares = np.ones(1)
    for chance in chances:
        shares = np.convolve(shares, binom.pmf(np.arange(number + 1), number, chance))
    far = np.abs(np.arange(len(shares)) / number - sum(chances))
    return float(min(1.0, shares[far.round(DIGITS) >= round(abs(float(excess.sum())), DIGITS)].sum()))


def _hint(num_documents: int) -> str:
    return f" ({num_documents} cannot show a difference)" if num_documents < FEWEST else ""


def sign_flips(parts: np.ndarray) -> float:
    """The share of all 2^n sums of plus or minus these numbers that are as far from zero as their own sum.

    Without a difference, each document could as well have gone the other way (Fisher 1935).
    """
    half = len(parts) // 2
    sums = np.abs(np.add.outer(_all_sums(parts[:half]), _all_sums(parts[half:])))
    # In units of the largest possible sum, so that rounding errors are of one size.
    scale = np.abs(parts).sum() or 1.0
    return float(((sums / scale).round(DIGITS) >= np.round(abs(parts.sum()) / scale, DIGITS)).mean())


def _all_sums(parts: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for part in parts:
        sums = np.concatenate([sums + part, sums - part])
    return sums


def _are_shares(values: Sequence[float]) -> bool:
    """True for answers that are right (1) or wrong (0), or means of those over seeds; nats are never exactly 0 or 1."""
    found = np.asarray(values, dtype=float)
    return bool((found >= 0).all() and (found <= 1).all() and np.isin(found, (0, 1)).any())


@dataclass(frozen=True)
class Spread:
    """The standard error of a mean over strata, and its degrees of freedom."""

    stderr: float
    freedom: float

    @classmethod
    def of(cls, strata: Sequence[np.ndarray], shares: Sequence[bool]) -> Spread:
        """stderr^2 = sum(v_t) / T^2 with v_t = s_t^2 / n_t; freedom = sum(v_t)^2 / sum(v_t^2 / (n_t - 1)).

        `shares`: True for a stratum of right and wrong answers.  Read-outs that agree on all of them do not agree for
        certain: there v_t is that of one more document won and one more lost.
        """
        if any(len(differences) < 2 for differences in strata):
            return cls(math.nan, 1.0)
        numbers = np.array([len(differences) for differences in strata])
        squares = np.array([*map(_variance, strata, shares)]) / numbers
        total = float(squares.sum())
        freedom = total**2 / float((squares**2 / (numbers - 1)).sum()) if total > 0 else float((numbers - 1).sum())
        return cls(math.sqrt(total) / len(strata), freedom)

    def p_value(self, mean: float, num_differing: int) -> float:
        """The p-value of Student's t; never less than exact sign flips of so many documents could reach."""
        from scipy.stats import t

        if round(mean, DIGITS) == 0:
            return 1.0
        tails = 2 * float(t.sf(abs(mean) / self.stderr, self.freedom)) if self.stderr > 0 else 0.0
        return max(tails, 2.0 ** (1 - num_differing))


def _variance(differences: np.ndarray, is_share: bool) -> float:
    num = len(differences)
    if is_share and not differences.any():
        return 2 * num / (num + 2) ** 2
    return float(differences.var(ddof=1))


# --- rows of a table -------------------------------------------------------------------------------------------------

Outcomes = Mapping[str, np.ndarray]
"""The values of every document, by task; means over seeds if there are several."""


def against_reference(rows: pd.DataFrame, loaded: LoadedResults) -> pd.DataFrame:
    """Every row of `summary.summary` against the reference row of its model and data type: COLUMNS, the row's index.

    The reference is the explicit Baseline of that width, where there is one, else the sliced parent; of the same base
    algorithm, scope and grid, where there is one.  A Baseline has no reference.
    """
    import pandas as pd  # imported here: comparing two read-outs needs no table

    found = []
    metrics = {**loaded.metrics, **TESTED_METRICS}
    for _, group in rows[rows["base"] != "none"].groupby(["model", "bits", "plan"], sort=False):
        measured = {
            index: {**outcomes(loaded, row), **measures_of(loaded, row["cell_id"].split(", "), row["plan"])}
            for index, row in group.iterrows()
        }
        for index in group.index:
            reference = _reference(group, index)
            if reference is None:
                continue
            for task, difference in differences(measured[index], measured[reference], loaded.averaged).items():
                found.append(
                    {
                        "index": index,
                        **{name: group.at[index, name] for name in ("model", "plan")},
                        "row": group.at[index, "label"],
                        "reference": group.at[reference, "label"],
                        "task": task,
                        "difference": difference.mean,
                        **{name: getattr(difference, name) for name in TESTED},
                        "higher_is_better": loaded.higher_is_better(task, metrics[task]),
                        "grid": grids.text_of(group.loc[index].to_dict()),
                        "reference_grid": grids.text_of(group.loc[reference].to_dict()),
                    }
                )
    return pd.DataFrame(found, columns=["index", *COLUMNS]).set_index("index")


def _reference(group: pd.DataFrame, index: Any) -> Any | None:
    """The row that another one is held against.

    One of its algorithm comes before others, then one of its scope, of its grid and of its ends; of these a Baseline
    before Sliced.
    """
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
            "grid": candidates["grid"] != row["grid"],
            "ends": candidates["ends"] != row["ends"],
            "sliced": ~baseline[candidates.index],
        }
    )
    return distance.sort_values(list(distance.columns), kind="stable").index[0]


def outcomes(loaded: LoadedResults, row: pd.Series) -> Outcomes:
    """The outcomes of every document behind a row of the table; tasks without stored documents are left out."""
    return outcomes_of(loaded, row["cell_id"].split(", "), row["plan"])


def outcomes_of(loaded: LoadedResults, cell_ids: Sequence[str], plan: str) -> Outcomes:
    """The outcomes of cells that differ in their seed alone, averaged over seeds; every seed has to have them."""
    found = {}
    for task in (*loaded.tasks, LOG_PPLX):
        metric = loaded.metrics.get(task)
        seeds = [document_values(loaded.documents(cell_id, plan, task), metric) for cell_id in cell_ids]
        values = [of_seed for of_seed in seeds if of_seed is not None]
        if len(values) == len(seeds) and len({len(of_seed) for of_seed in values}) == 1:
            found[task] = np.mean(values, axis=0)
    return found


def document_values(documents: Mapping[str, Sequence[Any]], metric: str | None) -> np.ndarray | None:
    """A metric of every document; None if it is not one number for each."""
    values = documents.get(metric) if metric is not None else None
    if values is None or any(value is None for value in values):
        return None
    return np.asarray(values, dtype=float)


def differences(ours: Outcomes, theirs: Outcomes, averaged: Iterable[str] | None = None) -> dict[str, Difference]:
    """Differences in every task that both have on equally many documents, in Task Avg if those are all, in log pplx.

    `averaged`: the tasks of Task Avg, if not all are.
    """
    common = [task for task in ours if task in theirs and len(ours[task]) == len(theirs[task])]
    tasks = [task for task in common if task != LOG_PPLX]
    found = {task: _of_task(ours[task], theirs[task]) for task in tasks}
    wanted = [task for task in ({**ours, **theirs} if averaged is None else averaged) if task != LOG_PPLX]
    if wanted and set(wanted) <= set(tasks):
        found[TASK_AVG] = paired_test([(ours[task].tolist(), theirs[task].tolist()) for task in wanted])
    if LOG_PPLX in common:
        found[LOG_PPLX] = paired_test([(ours[LOG_PPLX].tolist(), theirs[LOG_PPLX].tolist())])
    return found


def _of_task(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """McNemar where every document is right or wrong; else the paired test of means over seeds and graded answers."""
    if set(np.unique([ours, theirs])) <= {0.0, 1.0}:
        return mcnemar(ours.tolist(), theirs.tolist())
    return paired_test([(ours.tolist(), theirs.tolist())])
