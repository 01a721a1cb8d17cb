"""The summary of a report in words: which row is best at each width, by how much, and where nothing can be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis.frame.contests import Contest, Place, contests_at, places
from analysis.frame.names import model_name
from analysis.frame.significance import LEVEL
from analysis.tables.typeset import with_error
from evaluation.results.metrics import LOG_PPLX, TASK_AVG

if TYPE_CHECKING:
    import pandas as pd

    from analysis.frame.contests import Rival
    from analysis.frame.load import LoadedResults

MOST_NAMED = 3
"""The most rivals of one kind that a sentence names; the others are counted."""
SAME_SIZE = 0.005
"""The share by which stored bits may differ before a sentence says so."""


class Measured(NamedTuple):
    """A measure in words: its name, its unit, the form, factor and unit of a difference, and what it is a mean of."""

    name: str
    unit: str
    form: str
    scale: float
    short: str
    documents: str


WORDS = {
    LOG_PPLX: Measured("Log perplexity", "nats per token, lower is better", ".3f", 1, "nats", "blocks of text"),
    TASK_AVG: Measured("Task Avg", "percent, higher is better", ".1f", 100, "points", "documents"),
}
NOTHING = "Nothing has been measured yet."
ALONE = "Nothing to compare: no two rows have been measured at the same width."
NOTE = (
    "Best: against every other row of the same width, on the same documents; ± is the standard error of the paired "
    f"difference. Told apart: p < {LEVEL:g}, corrected for the number of rivals (Holm)."
)
ONE_RUN = " Another training run, with another seed, may differ by more."


class Width(NamedTuple):
    """The sentences about one width."""

    name: str
    sentences: Sequence[str]


class Lead(NamedTuple):
    """The answer by one measure: who is best, and where, by how much; a name is empty where nothing can be told."""

    measure: str
    unit: str
    clauses: Sequence[tuple[str, str]]


class Summary(NamedTuple):
    """The answer first (`leads`), then width by width, and how it was tested."""

    leads: Sequence[Lead]
    widths: Sequence[Width] = ()
    note: str = ""


def summary_of(rows: pd.DataFrame, loaded: LoadedResults) -> Summary:
    """The summary, computed from the rows of `summary.summary` and the documents behind them."""
    measured = rows[rows[TASK_AVG].notna() | rows[LOG_PPLX].notna()]
    if measured.empty:
        return Summary([Lead("", "", [("", NOTHING)])])
    found = {place[:2]: (place, list(contests_at(place, loaded))) for place in places(measured)}
    leads, several = [], measured["model"].nunique() > 1
    for model in measured["model"].unique():
        of_model = [one for (name, _), (_, all_here) in found.items() if name == model for one in all_here]
        leads += _leads(of_model, f"{model_name(model)}: " if several else "")
    if not any(contests for _, contests in found.values()):
        return Summary(leads)
    widths = [_width(place, contests, several=several) for place, contests in found.values()]
    of_one_run = (measured.loc[measured["base"] != "none", "num_seeds"] < 2).any()
    return Summary(leads, widths, NOTE + (ONE_RUN if of_one_run else ""))


def _leads(contests: Sequence[Contest], model: str) -> Iterator[Lead]:
    """The answers for one model, whose name is given where there are several."""
    if not contests:
        yield Lead(model.removesuffix(": "), "", [("", ALONE)])
    for measure, words in WORDS.items():
        of_measure = [contest for contest in contests if contest.measure == measure]
        if of_measure:
            yield Lead(f"{model}{words.name}", words.unit, _clauses(of_measure, words))


def _clauses(contests: Sequence[Contest], words: Measured) -> list[tuple[str, str]]:
    won: dict[str, list[str]] = {}
    for contest in contests:
        if contest.is_decided:
            margin = _margin(contest.rivals[0], words)
            won.setdefault(contest.place.name_of(contest.best), []).append(f"{contest.place.name} (by {margin})")
    undecided = [contest.place.name for contest in contests if not contest.is_decided]
    clauses = [(name, f"is best at {_and(at)}.") for name, at in won.items()]
    if undecided:
        clauses.append(
            ("", f"Nothing can be told at {_and(undecided)}: no row there is significantly better than all others.")
        )
    return clauses


def _width(place: Place, contests: Sequence[Contest], *, several: bool) -> Width:
    name = f"{model_name(place.model)}, {place.name}" if several else place.name
    if contests:
        return Width(name, [_sentence(contest) for contest in contests])
    if len(place.rows) == 1:
        return Width(name, [f"Nothing to compare: {place.name_of(place.rows.index[0])} alone is measured here."])
    return Width(name, ["Nothing to compare: no two rows have the same measure."])


def _sentence(contest: Contest) -> str:
    """`Log perplexity: best is A, 5.031; significantly better than B by 0.128 ± 0.021 nats (p = 0.001); ...`."""
    words, place = WORDS[contest.measure], contest.place
    value = words.scale * place.number(contest.best, contest.measure)
    tested = [rival for rival in contest.rivals if rival.difference is not None]
    kinds: Mapping[str, Sequence[str]] = {
        "significantly better than": [_against(one, contest) for one in tested if one.is_beaten],
        "not told apart from": [_against(one, contest) for one in tested if not one.is_beaten],
        "not tested, for lack of common documents, against": [
            place.name_of(one.row) for one in contest.rivals if one.difference is None
        ],
    }
    says = "; ".join(f"{kind} {_and(_shortened(names))}" for kind, names in kinds.items() if names)
    number = max((one.difference.num_documents for one in tested if one.difference is not None), default=0)
    of = f" ({number} {words.documents})" if number else ""
    return f"{words.name}: best is {place.name_of(contest.best)}, {value:{words.form}}; {says}{of}."


def _against(rival: Rival, contest: Contest) -> str:
    """`B by 0.128 ± 0.021 nats (p = 0.001)`, with the stored bits of both where they differ."""
    ours, theirs = (contest.place.number(row, "model_bits") for row in (contest.best, rival.row))
    differ = abs(ours - theirs) > SAME_SIZE * ours
    size = f"; stored bits {ours:.4g} against {theirs:.4g}" if differ else ""
    margin = _margin(rival, WORDS[contest.measure])
    return f"{contest.place.name_of(rival.row)} by {margin} ({_p_text(rival.p_value)}{size})"


def _margin(rival: Rival, words: Measured) -> str:
    """`0.128 ± 0.021 nats`: the size of a difference, whichever way is better."""
    assert rival.difference is not None
    mean, stderr = words.scale * abs(rival.difference.mean), words.scale * rival.difference.stderr
    return f"{with_error(mean, stderr, words.form)} {words.short}"


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _shortened(names: Sequence[str]) -> list[str]:
    left = len(names) - MOST_NAMED
    return list(names) if left < 2 else [*names[:MOST_NAMED], f"{left} more"]


def _and(names: Sequence[Any]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else str(last)
