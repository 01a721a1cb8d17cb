"""Claims with their verdicts, as tables: how many cases came to which, and case by case what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from analysis.claims.cases import find, paper_text
from analysis.claims.verdicts import Word
from analysis.frame.names import BASE_NAMES
from analysis.frame.significance import LEVEL
from analysis.tables.typeset import Entry, Section, Table

if TYPE_CHECKING:
    from analysis.claims.cases import Opened
    from analysis.claims.definition import StudyDefinition

WORDS: tuple[Word, ...] = get_args(Word)
HEADS = ("Claim", "Source", "Case", "The paper, Task Avg", "Measured here", "Verdict")


def glance(study: StudyDefinition, opened: Opened) -> Table:
    """A row for each claim: how many of its cases came to which verdict, checks not among them."""
    heads = ("Claim", *(word.capitalize() for word in WORDS), "Checks")
    rows = []
    for claim in study.claims:
        found = [find(case, opened, study.background).verdict.word for case in claim.cases if not case.is_check]
        checks = sum(case.is_check for case in claim.cases)
        texts = (claim.words, *(str(found.count(word) or "") for word in WORDS), str(checks or ""))
        rows.append(tuple(map(Entry, texts)))
    return Table(heads, (Section("", "", tuple(rows)),), (), num_labels=1)


def claims_table(study: StudyDefinition, opened: Opened) -> Table:
    """A row for each case of each claim: what the paper prints, what we measured, and the verdict."""
    sections = []
    for claim in study.claims:
        rows = []
        for place, case in enumerate(claim.cases):
            found = find(case, opened, study.background)
            words = (claim.words, claim.source) if place == 0 else ("", "")
            where = f"{case.where} ({found.experiment})" if found.experiment else case.where
            texts = (*words, where, paper_text(case), found.measured, str(found.verdict))
            rows.append(tuple(map(Entry, texts)))
        sections.append(Section("", claim.words, tuple(rows)))
    return Table(HEADS, tuple(sections), _notes(study), num_labels=len(HEADS))


def _notes(study: StudyDefinition) -> tuple[str, ...]:
    """How to read the cases."""
    with_one_seed = dict.fromkeys(case.ours.base for case in study.cases if case.ours.base not in study.seeds)
    named = f" ({', '.join(BASE_NAMES.get(base, base) for base in with_one_seed)})" if with_one_seed else ""
    return (
        "Differences are ours minus the other's on the same documents: nats per token of log perplexity (less is "
        "better) and percent points of Task Avg (more is better), ± standard error, with the p-value of a paired "
        "bootstrap.",
        "In square brackets: the 95 % interval.",
        f"p-values are not corrected for their number: of twenty differences that are none, one has p < {LEVEL}.",
        "By training alone: so far two trainings that differ in nothing but their seed, which draws their text and "
        "batches, may lie apart, 19 times in 20. Where nothing is said of it both read-outs are of one checkpoint, the "
        f"algorithm was trained with one seed{named} and nobody knows, or the rule does not ask.",
        "In brackets after a case: the experiment below that it is read from.",
        "A check is a case of ours, added when the claim's own had been seen: it asks what their outcome is owed to.",
        "The paper: the same difference of Task Avg as its table prints it, model by model; – where it prints a dash. "
        "Empty where it prints none: MatGPTQ's accuracies and the points of figures are not among the numbers we have.",
    )


def tally(study: StudyDefinition, opened: Opened) -> str:
    """`holds: 3; does not hold: 1`: how many cases came to which verdict, checks not among them."""
    found = [find(case, opened, study.background).verdict.word for case in study.cases if not case.is_check]
    return "; ".join(f"{word}: {found.count(word)}" for word in WORDS if word in found)
