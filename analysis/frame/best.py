"""The numbers that tables print bold: significantly better than every other row of the same model and data type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.frame.contests import holm
from analysis.frame.measures import measures_of
from analysis.frame.significance import LEVEL, TESTED_METRICS, differences, outcomes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from analysis.frame.load import LoadedResults
    from analysis.frame.significance import Outcomes

BEST = "best"
"""The column of rows that holds the names of their numbers, `boolq` or `log_pplx`, that are the best."""


def with_best(rows: pd.DataFrame, loaded: LoadedResults) -> pd.DataFrame:
    """The rows of `summary.summary`, with the column BEST.

    A number is the best if the row differs significantly from each of the others, paired over the same documents, and
    for the better, by p-values that are corrected for the number of the others (`contests`); a row that nobody else's
    stands beside has none.
    """
    import pandas as pd

    found: dict[Any, list[str]] = {index: [] for index in rows.index}
    for _, group in rows[rows["base"] != "none"].groupby(["model", "bits", "plan"], sort=False):
        if len(group) > 1:
            for index, name in _of_group(group, loaded):
                found[index].append(name)
    texts = [tuple(names) for names in found.values()]
    return rows.assign(**{BEST: pd.Series(texts, rows.index, dtype=object)})


def _of_group(group: pd.DataFrame, loaded: LoadedResults) -> Iterator[tuple[Any, str]]:
    """The index of each row that is the best in a number, and that number's name."""
    measured: dict[Any, Outcomes] = {
        index: {**outcomes(loaded, row), **measures_of(loaded, row["cell_id"].split(", "), row["plan"])}
        for index, row in group.iterrows()
    }
    metrics = {**loaded.metrics, **TESTED_METRICS}
    for name in [name for name in metrics if name in group]:
        values = group[name].dropna()
        if len(values) > 1:
            first = values.idxmax() if loaded.higher_is_better(name, metrics[name]) else values.idxmin()
            others = [index for index in values.index if index != first]
            found = [differences(measured[first], measured[other], loaded.averaged).get(name) for other in others]
            p_values = holm([1.0 if one is None else one.p_value for one in found])
            if max(p_values) < LEVEL:
                yield first, name
