"""Contests: the best row at each width against every other row of that width, on the documents that both answered.

The best row is chosen by looking, so that its p-values are corrected for the number of its rivals (Holm 1979): where
all rows of a width are equally good, one of twenty contests is called won.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis.frame.significance import LEVEL, Difference, Outcomes, outcomes, paired_test
from evaluation.results.metrics import LOG_PPLX, TASK_AVG

if TYPE_CHECKING:
    import pandas as pd

    from analysis.frame.load import LoadedResults

MEASURES = (LOG_PPLX, TASK_AVG)


class Rival(NamedTuple):
    """A row that the best one is held against.

    `difference`: the best row's value less this one's; None where their documents are not stored or not the same.
    """

    row: Any
    difference: Difference | None
    p_value: float

    @property
    def is_beaten(self) -> bool:
        return self.difference is not None and self.p_value < LEVEL


class Place(NamedTuple):
    """The rows of one model that are read at one width."""

    model: str
    name: str
    rows: pd.DataFrame

    def name_of(self, index: Any) -> str:
        """The label of a row, and its plan where rows of several plans meet."""
        row = self.rows.loc[index]
        return f"{row['label']} at {row['plan']}" if self.rows["plan"].nunique() > 1 else str(row["label"])

    def number(self, index: Any, column: str) -> float:
        """A number of a row."""
        return float(self.rows[column].astype(float).loc[index])


@dataclass(frozen=True)
class Contest:
    """The rows of one place by one measure; rows by their index, rivals from near to far."""

    place: Place
    measure: str
    best: Any
    rivals: Sequence[Rival]

    @property
    def is_decided(self) -> bool:
        """True if the best row is told apart from every rival."""
        return all(rival.is_beaten for rival in self.rivals)


def places(rows: pd.DataFrame) -> list[Place]:
    """The widths of each model, wide to narrow, with the quantized rows that are read there.

    Layouts of one budget meet: `pyramid@4` stands beside `int4`.
    """
    quantized = rows[rows["base"] != "none"]
    keys = [quantized["model"], quantized["bits"].round(2), quantized["extra_precision"].astype(bool)]
    found = []
    for (model, bits, extra), group in quantized.groupby(keys, sort=False):
        plans = group["plan"].unique()
        name = plans[0] if len(plans) == 1 else f"{bits:g} bits{' with an overflow bucket' if extra else ''}"
        found.append(Place(str(model), str(name), group))
    return found


def contests_at(place: Place, loaded: LoadedResults) -> Iterator[Contest]:
    """A contest for each measure that two rows or more of a place have."""
    documents: dict[Any, Outcomes] = {}
    for measure in MEASURES:
        values = place.rows[measure].dropna()
        if len(values) < 2:
            continue
        for index in values.index:
            if index not in documents:
                documents[index] = outcomes(loaded, place.rows.loc[index])
        sign = -1 if measure == LOG_PPLX else 1
        best, *others = (sign * values).sort_values(ascending=False, kind="stable").index
        found = [_difference(documents[best], documents[other], measure, loaded) for other in others]
        p_values = holm([one.p_value for one in found if one is not None])
        rivals = [Rival(row, one, p_values.pop(0) if one else 1.0) for row, one in zip(others, found, strict=True)]
        yield Contest(place, measure, best, rivals)


def _difference(ours: Outcomes, theirs: Outcomes, measure: str, loaded: LoadedResults) -> Difference | None:
    """The paired difference in a measure; None where one of the two lacks documents that the other has."""
    strata = [LOG_PPLX] if measure == LOG_PPLX else list(loaded.averaged)
    if any(task not in ours or task not in theirs or len(ours[task]) != len(theirs[task]) for task in strata):
        return None
    return paired_test([(ours[task].tolist(), theirs[task].tolist()) for task in strata])


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for their number: the smallest of n times n, the next times n - 1; never more than 1."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - place) * p_values[number])
        corrected[number] = min(1.0, largest)
    return corrected
