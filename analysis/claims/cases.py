"""A claim as data: its words, where a paper makes it, and its cases.

A case has the read-outs that are compared and the rule (`judges`, `verdicts`) that gives the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from analysis.claims.evidence import (
    NOT_MEASURED,
    Finding,
    Judge,
    MeasuredReadOut,
    Noise,
    ReadOut,
    measured,
    noise_of,
    printed,
)
from analysis.claims.questions import corrected
from analysis.frame import grids
from matquant.config.grid_words import COVERED
from matquant.errors import UserError

if TYPE_CHECKING:
    from analysis.frame.opened import OpenStudy

Opened = Mapping[str, "OpenStudy"]
"""The experiments of a study that exist, by name."""


@dataclass(frozen=True)
class Case:
    """A claim for one algorithm and width: `ours` is held against `theirs`.

    It is read from the first of `experiments` in which everything is measured; one with several seeds comes first.
    `table`: the number of MatQuant's table that prints the same difference.
    """

    where: str
    experiments: tuple[str, ...]
    judge: Judge
    ours: ReadOut
    theirs: tuple[ReadOut, ...] = ()
    table: int | None = None

    @property
    def is_check(self) -> bool:
        """True for a case that no paper claims: it looks for the cause of another case's outcome."""
        return ", check: " in self.where


@dataclass(frozen=True)
class Claim:
    """A claim in words, where the papers make it, and the cases in which it is tested."""

    words: str
    source: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Background:
    """The facts about a study's model besides the read-outs of a case.

    `seeds`: the experiments in which an algorithm is measured with several seeds, by its name; the first that has been
    measured counts.  `unigram`: nats per token of the held-out text for a unigram model of the training text, one added
    to each count: a model that is worse has failed; by the name of the model, if there are several.  `models`: those
    over which the noise of training is pooled; a row that is neither MatQuant nor the Baseline has its own then.
    `nested`: the facts of the MatQuant whose seeds count, if there are several.
    """

    seeds: Mapping[str, tuple[str, ...]]
    unigram: float | Mapping[str, float] | None = None
    models: tuple[str, ...] = ()
    nested: Mapping[str, str] = field(default_factory=dict)

    def unigram_of(self, read: ReadOut) -> float | None:
        """The limit of a read-out's model."""
        return self.unigram.get(read.facts.get("model", "")) if isinstance(self.unigram, Mapping) else self.unigram


def find(case: Case, opened: Opened, background: Background) -> Finding:
    """The measurement of a case, and the verdict on it, as if it were the only one of its claim."""
    for name in (name for name in case.experiments if name in opened):
        ours, *theirs = (_read(read, name, opened, background) for read in (case.ours, *case.theirs))
        if ours is None:
            continue
        rivals = [rival for rival in theirs if rival is not None and rival.seeds.keys() & ours.seeds.keys()]
        if len(rivals) == len(theirs):
            if other := next((rival for rival in rivals if rival.protocols != ours.protocols), None):
                raise UserError(_of_other_text(case, name, ours, other))
            found = case.judge(ours, rivals)
            return replace(found, experiment=name, measured=found.measured + _grids_text(ours, rivals))
    return NOT_MEASURED


def _of_other_text(case: Case, home: str, ours: MeasuredReadOut, other: MeasuredReadOut) -> str:
    """The sentence for two read-outs that are of other text, or other documents, so that nothing pairs them."""
    tasks = [
        task
        for task in dict.fromkeys([*ours.protocols, *other.protocols])
        if ours.protocols.get(task) != other.protocols.get(task)
    ]
    homes = [read.experiment or home for read in (case.ours, other.read)]
    return (
        f"the case {case.where!r} holds {homes[0]} against {homes[1]}, which read {', '.join(tasks)} otherwise: other "
        "text, documents or settings; name experiments in claims.py whose read-outs are alike"
    )


def findings(claim: Claim, opened: Opened, background: Background) -> list[Finding]:
    """The findings of all cases of a claim; margins are corrected for the number of cases, checks apart."""
    found = [find(case, opened, background) for case in claim.cases]
    for checks in (False, True):
        places = [place for place, case in enumerate(claim.cases) if case.is_check is checks]
        for place, one in zip(places, corrected([found[place] for place in places]), strict=True):
            found[place] = one
    return found


def _grids_text(ours: MeasuredReadOut, rivals: Sequence[MeasuredReadOut]) -> str:
    """The grids of a case, where those of its read-outs differ; an unquantized model has none."""
    theirs = list(dict.fromkeys(rival.grid for rival in rivals if rival.grid not in ("", ours.grid)))
    return f"; on {ours.grid}, against {' and '.join(theirs)}" if theirs and ours.grid else ""


def _read(read: ReadOut, home: str, opened: Opened, background: Background) -> MeasuredReadOut | None:
    """A read-out with the noise of its training; None if it is not measured."""
    study = opened.get(read.experiment or home)
    found = None if study is None else measured(study, read)
    if study is None or found is None:
        return None
    noise = _noise(read, opened, background)
    if background.models and not (noise and found.cells <= noise.cells):
        others = (other for other in opened.values() if found.cells <= other.cells.keys())
        noise = _noise_of_its_own(read, (study, *others), background)
    return replace(found, unigram=background.unigram_of(read), noise=noise)


def _noise_of_its_own(wanted: ReadOut, homes: Iterable[OpenStudy], background: Background) -> Noise | None:
    """The noise of a row that is neither the MatQuant nor the Baseline whose seeds count: of itself on all models.

    In the first experiment in which it has several seeds.
    """
    reads = [replace(wanted, facts={**wanted.facts, "model": model}) for model in background.models]
    for study in homes:
        noise = noise_of([found for found in (measured(study, read) for read in reads) if found is not None])
        if noise is not None:
            return noise
    return None


def _noise(wanted: ReadOut, opened: Opened, background: Background) -> Noise | None:
    """The noise of training at a width, from MatQuant and the Baseline where they have several seeds.

    Of the same grid, where the read-out names it by facts; of all models that the study names.
    """
    plan = wanted.plan.removesuffix("+ep")
    on_grid = {key: value for key, value in wanted.facts.items() if key in (*COVERED, *grids.PARTS)}
    models = [{"model": model} for model in background.models] or [{}]
    for home in (opened[name] for name in background.seeds.get(wanted.base, ()) if name in opened):
        reads = (
            ReadOut(wanted.base, method, plan, {**on_grid, **model, **facts})
            for method, facts in (("MatQuant", background.nested), ("Baseline", {}))
            for model in models
        )
        noise = noise_of([found for found in (measured(home, read) for read in reads) if found is not None])
        if noise is not None:
            return noise
    return None


def paper_text(case: Case) -> str:
    """`Table 1: Gemma-2 2B +1.0, ...`: the difference of Task Avg as the paper prints it; empty if it does not."""
    if case.table is None or not case.theirs:
        return ""
    found = printed(case.table, case.ours, case.theirs[0])
    return f"Table {case.table}: {found}" if found else ""
