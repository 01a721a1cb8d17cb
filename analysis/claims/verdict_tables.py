"""Claims with their verdicts, as tables: the number of cases with each verdict, and the measurement of each case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from analysis.claims.cases import findings, paper_text
from analysis.claims.judges import RULE_OF
from analysis.claims.margins import MARGIN_RULES
from analysis.claims.verdicts import Word
from analysis.frame.names import BASE_NAMES
from analysis.frame.significance import LEVEL
from analysis.tables.typeset import Entry, Section, Table

if TYPE_CHECKING:
    from analysis.claims.cases import Claim, Opened
    from analysis.claims.definition import StudyDefinition

WORDS: tuple[Word, ...] = get_args(Word)
HEADS = ("Claim", "Source", "Case", "The paper, Task Avg", "Measured here", "Verdict")


def glance(study: StudyDefinition, opened: Opened) -> Table:
    """A row for each claim: the number of its cases with each verdict, without checks.

    Of a study with several models also the number of questions that hold on all of them.
    """
    several = len(study.models) > 1
    heads = ("Claim", *(word.capitalize() for word in WORDS), *(["Hold on all models"] if several else []), "Checks")
    rows = []
    for claim in study.claims:
        found = words_of(claim, study, opened)
        checks = sum(case.is_check for case in claim.cases)
        everywhere = [_on_all_models(claim, found)] if several else []
        texts = (claim.words, *(str(found.count(word) or "") for word in WORDS), *everywhere, str(checks or ""))
        rows.append(tuple(map(Entry, texts)))
    return Table(heads, (Section("", "", tuple(rows)),), (), num_labels=1)


def _on_all_models(claim: Claim, found: Sequence[Word]) -> str:
    """`1 of 4`: of the questions that are measured on every model, those that hold on each; empty if there are none.

    A case begins with the name of its model.
    """
    by_question: dict[str, set[Word]] = {}
    for case, word in zip((case for case in claim.cases if not case.is_check), found, strict=True):
        by_question.setdefault(case.where.partition(", ")[2], set()).add(word)
    measured = [words for words in by_question.values() if "not measured yet" not in words]
    return f"{measured.count({'holds'})} of {len(measured)}" if measured else ""


def claims_table(study: StudyDefinition, opened: Opened) -> Table:
    """A row for each case of each claim: the paper's number, our measurement, and the verdict."""
    sections = []
    for claim in study.claims:
        rows = []
        found_of = findings(claim, opened, study.background)
        for place, (case, found) in enumerate(zip(claim.cases, found_of, strict=True)):
            words = (claim.words, claim.source) if place == 0 else ("", "")
            where = f"{case.where} ({found.experiment})" if found.experiment else case.where
            texts = (*words, where, paper_text(case), found.measured, str(found.verdict))
            rows.append(tuple(map(Entry, texts)))
        sections.append(Section("", claim.words, tuple(rows)))
    return Table(HEADS, tuple(sections), _notes(study), num_labels=len(HEADS))


def _notes(study: StudyDefinition) -> tuple[str, ...]:
    """The notes on reading the cases."""
    judges = {case.judge for case in study.cases}
    return ((*MARGIN_NOTES,) if judges & set(MARGIN_RULES.values()) else ()) + (
        _notes_on_tests(study) if judges & set(RULE_OF) else ()
    )


MARGIN_NOTES = (
    "Differences are ours minus the other's, in nats a token, means over the seeds of each, paired by block; in square "
    "brackets the 95 % interval, of blocks and of seeds, not corrected for the number of cases. The spread of seeds is "
    "pooled over Baseline and MatQuant of that algorithm, width and grid, on all models; of any other row over the "
    "models alone. Read-outs of one checkpoint are paired by seed.",
    "A row counts once all of its seeds are measured.",
    "Verdicts are corrected for the number of cases of their claim, measured or not (Holm); checks by themselves. A "
    "correction can only make a case one that cannot be told.",
)


def _notes_on_tests(study: StudyDefinition) -> tuple[str, ...]:
    with_one_seed = dict.fromkeys(case.ours.base for case in study.cases if case.ours.base not in study.seeds)
    named = f" ({', '.join(BASE_NAMES.get(base, base) for base in with_one_seed)})" if with_one_seed else ""
    return (
        "Differences are ours minus the other's on the same documents: nats per token of log perplexity (less is "
        "better) and percent points of Task Avg (more is better), ± standard error, with the p-value of a paired "
        "test: exact sign flips where at most 20 documents or blocks differ, else Student's t.",
        "In square brackets: the 95 % interval.",
        f"p-values are not corrected for their number: where nothing differs, one of twenty is still below {LEVEL}.",
        "By training alone: two trainings with different seeds, which draw text and batches, differ by less than this "
        "19 times in 20. It is not stated where both read-outs are of one checkpoint, where the algorithm was trained "
        f"with one seed{named}, and where the rule does not need it.",
        "In brackets after a case: the experiment below that it is read from.",
        "A check is a case of ours, added after the results of the claim's own cases: it looks for their cause.",
        "The paper: the same difference of Task Avg as its table prints it, model by model; – where it prints a dash. "
        "Empty where it prints none: MatGPTQ's accuracies and the points of figures are not among the numbers we have.",
    )


def tally(study: StudyDefinition, opened: Opened) -> str:
    """`holds: 3; does not hold: 1`: the number of cases with each verdict, without checks."""
    found = [word for claim in study.claims for word in words_of(claim, study, opened)]
    return "; ".join(f"{word}: {found.count(word)}" for word in WORDS if word in found)


def words_of(claim: Claim, study: StudyDefinition, opened: Opened) -> list[Word]:
    """The verdicts on the cases of a claim, without checks."""
    pairs = zip(claim.cases, findings(claim, opened, study.background), strict=True)
    return [found.verdict.word for case, found in pairs if not case.is_check]
