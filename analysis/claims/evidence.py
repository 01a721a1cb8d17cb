"""The evidence for a claim: read-outs by the paper's names, paired on the same documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import published
from analysis.claims.verdicts import Gain, PairedGains, Verdict
from analysis.frame import grids
from analysis.frame.code_counts import bucket_shares, codes_of
from analysis.frame.measures import measures_of
from analysis.frame.names import flatten, model_name
from analysis.frame.significance import guess_test, outcomes_of, paired_test, quantile
from analysis.frame.summary import CHANCE
from evaluation.results.metrics import KL, LOG_PPLX, TASK_AVG
from matquant.errors import UserError
from matquant.notation import Plan, Slice

if TYPE_CHECKING:
    from analysis.frame.code_counts import Codes
    from analysis.frame.opened import OpenStudy
    from analysis.frame.significance import Difference, Outcomes
    from evaluation.results.store import Protocol
    from matquant.config.cell import Cell

NARROW = Slice(2)
TEXT = (LOG_PPLX, KL)
"""The measures of held-out text, which are no tasks."""


@dataclass(frozen=True)
class ReadOut:
    """A read-out as the tables name it; `facts` tell it from others of that name: `weights`, `base.student_input`.

    `experiment`: that it is read from, if it is not the one of its case.
    """

    base: str
    method: str
    plan: str
    facts: Mapping[str, str] = field(default_factory=dict)
    experiment: str = ""

    @property
    def name(self) -> str:
        """The part of the name in which rivals differ: `pyramid`, or `MatQuant at int6`."""
        mixed = self.method.removeprefix("Mix'n'Match ")
        return mixed if mixed != self.method else f"{self.method} at {self.plan}"


class Pooled(NamedTuple):
    """A standard deviation over seeds, pooled over rows, with its degrees of freedom."""

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Noise:
    """The noise of training: pooled standard deviations over seeds, with their degrees of freedom.

    `codes`: of the mean code and of the share of weights in the highest bucket; zeros if no seed's codes are known.
    `nats`: of log perplexity and, over those rows that have it, divergence, by name.  `cells`: the checkpoints that it
    was estimated from.
    """

    task_avg: float
    log_pplx: float
    freedom: int
    codes: tuple[float, float] = (0.0, 0.0)
    nats: Mapping[str, Pooled] = field(default_factory=dict)
    cells: frozenset[str] = frozenset()

    def reach(self, num_seeds: int) -> float:
        """The standard deviations that two means over so many seeds stay within by training alone, 19 times in 20."""
        return quantile(self.freedom) * math.sqrt(2 / num_seeds)


@dataclass(frozen=True)
class MeasuredReadOut:
    """A read-out as measured: for every seed the outcomes of every document; its bits and codes.

    `codes`: of the seeds that have them.  `cells`: the ids of its checkpoints.  `noise`: the noise of training at that
    width, if known.  `unigram`: nats per token of a unigram model of the training text, if known; a model with a higher
    log perplexity has failed.  `grid`: in words.  `stored_bits`: of everything, per parameter of the whole model.
    `is_trained`: whether it was fitted on text in an order that the seed draws.  `protocols`: by task.
    """

    read: ReadOut
    seeds: Mapping[int, Outcomes]
    effective_bits: float = float("nan")
    codes: Mapping[int, Codes] = field(default_factory=dict)
    cells: frozenset[str] = frozenset()
    noise: Noise | None = None
    unigram: float | None = None
    grid: str = ""
    stored_bits: float = float("nan")
    is_trained: bool = False
    protocols: Mapping[str, Protocol] = field(default_factory=dict)

    def over(self, seeds: Sequence[int]) -> Outcomes:
        """The mean over seeds, document by document."""
        return {name: np.mean([self.seeds[seed][name] for seed in seeds], axis=0) for name in self.measures}

    @property
    def measures(self) -> list[str]:
        """The tasks and the measures of text that every seed has."""
        first, *others = self.seeds.values()
        return [name for name in first if all(name in other for other in others)]

    @cached_property
    def outcomes(self) -> Outcomes:
        return self.over(list(self.seeds))

    @property
    def task_avg(self) -> float:
        return _task_avg(self.outcomes)

    @property
    def log_pplx(self) -> float:
        return float(self.outcomes[LOG_PPLX].mean())

    @property
    def limit(self) -> float:
        """The nats that token frequencies reach; UserError in a study that does not say it."""
        if self.unigram is None:
            raise UserError(
                "the rule about models that train or fail has no limit; add unigram=NATS to STUDY in study.py"
            )
        return self.unigram

    @property
    def has_failed(self) -> bool:
        """True for a model that is worse than token frequencies."""
        return self.unigram is not None and self.log_pplx > self.unigram


def _task_avg(outcomes: Outcomes) -> float:
    """The mean over tasks; not a number if there are none."""
    tasks = [values.mean() for task, values in outcomes.items() if task not in TEXT]
    return float(np.mean(tasks)) if tasks else math.nan


@dataclass(frozen=True)
class Finding:
    """The outcome of a case: the measurement in words, the verdict, and the experiment that was measured."""

    measured: str
    verdict: Verdict
    experiment: str = ""


NOT_MEASURED = Finding("", Verdict("not measured yet"))

Judge = Callable[[MeasuredReadOut, Sequence[MeasuredReadOut]], Finding]
"""The rule of a claim, which takes its read-out and the ones that it is held against."""

# --- reading ---------------------------------------------------------------------------------------------------------


def cells_of(study: OpenStudy, read: ReadOut) -> list[tuple[int, str, str]]:
    """Seed, cell id and plan label of a read-out, a line for each seed; empty if the study has no such read-out.

    Raises UserError if several configurations fit; `facts` have to tell them apart.
    """
    expected = study.loaded.expected.drop_duplicates(["cell_id", "plan"])
    plans = expected["plan"].map(Plan.typed)
    found = expected[(expected["base"] == read.base) & (expected["method"] == read.method) & (plans == read.plan)]
    fits = [_has(study.cells[row["cell_id"]], row, read.facts) for row in found.to_dict("records")]
    found = found[np.array(fits, dtype=bool)]
    if found["config_id"].nunique() > 1:
        labels = ", ".join(found["label"])
        raise UserError(
            f"{read} fits several configurations of {study.study.name}: {labels}; add facts to it in claims.py"
        )
    return list(found[["seed", "cell_id", "plan"]].itertuples(index=False, name=None))


def _has(cell: Cell, row: Mapping[Any, Any], facts: Mapping[str, str]) -> bool:
    """True if a cell has all the facts; a fact is a column of the table or a dotted key of the cell."""
    of_cell = {**dict(flatten(cell.model_dump(mode="json"))), **{str(key): value for key, value in row.items()}}
    return all(str(of_cell.get(key)) == value for key, value in facts.items())


def measured(study: OpenStudy, read: ReadOut) -> MeasuredReadOut | None:
    """A read-out with all its seeds; None unless each is measured on every task, for a mean of fewer is another one."""
    key = ("measured", read.base, read.method, read.plan, read.experiment, *sorted(read.facts.items()))
    if key not in study.kept:
        study.kept[key] = _measured(study, read)
    return study.kept[key]


def _measured(study: OpenStudy, read: ReadOut) -> MeasuredReadOut | None:
    seeds: dict[int, Outcomes] = {}
    cells = cells_of(study, read)
    loaded = study.loaded
    wanted = [*loaded.averaged, LOG_PPLX]
    for seed, cell_id, plan in cells:
        found = outcomes_of(loaded, [cell_id], plan)
        if found.keys() >= set(wanted):
            of_text = measures_of(loaded, [cell_id], plan)
            seeds[seed] = {task: found[task] for task in wanted} | ({KL: of_text[KL]} if KL in of_text else {})
    if len(seeds) < max(1, len(cells)):
        return None
    _, cell_id, plan = next(line for line in cells if line[0] in seeds)
    rows = loaded.frame[(loaded.frame["cell_id"] == cell_id) & (loaded.frame["plan"] == plan)]
    ids = {seed: cell_id for seed, cell_id, _ in cells if seed in seeds}
    by_id = codes_of(loaded.store, ids.values())
    codes = {seed: by_id[cell_id] for seed, cell_id in ids.items() if cell_id in by_id}
    grid = grids.text_of(rows.iloc[0].to_dict())
    bits, stored = (float(rows[column].iloc[0]) for column in ("effective_bits", "model_bits"))
    is_trained = any(study.cells[cell_id].data is not None for cell_id in ids.values())
    protocols = {task: loaded.keys[cell_id, plan, task].protocol for task in wanted}
    of_cells = MeasuredReadOut(read, seeds, bits, codes, frozenset(ids.values()), grid=grid, stored_bits=stored)
    return replace(of_cells, is_trained=is_trained, protocols=protocols)


def noise_of(several: Sequence[MeasuredReadOut]) -> Noise | None:
    """The noise of training, from read-outs of one width with several seeds each; None if none has several."""
    each = [[(_task_avg(found), float(found[LOG_PPLX].mean())) for found in read.seeds.values()] for read in several]
    freedom = sum(len(pairs) - 1 for pairs in each)
    if freedom < 1:
        return None
    task_avg, log_pplx = _deviations(each)
    mean_code, highest = _deviations([[places(codes) for codes in read.codes.values()] for read in several])
    nats = {name: pooled for name in TEXT if (pooled := _pooled(several, name)).freedom}
    cells = frozenset(cell for read in several for cell in read.cells)
    return Noise(task_avg, log_pplx, freedom, (mean_code, highest), nats, cells)


def _pooled(several: Sequence[MeasuredReadOut], measure: str) -> Pooled:
    """The deviation of a measure of text, over the read-outs that have it; without freedom if none has."""
    having = [read.seeds.values() for read in several if measure in read.measures]
    means = [[(float(of_seed[measure].mean()), 0.0) for of_seed in seeds] for seeds in having]
    return Pooled(_deviations(means)[0], sum(len(seeds) - 1 for seeds in having))


def _deviations(each: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Pooled standard deviations within groups of pairs, for both numbers of a pair; zeros if no group has two."""
    several = [np.array(pairs) for pairs in each if len(pairs) > 1]
    if not several:
        return 0.0, 0.0
    squares = np.sum([pairs.var(axis=0) * len(pairs) for pairs in several], axis=0)
    first, second = np.sqrt(squares / sum(len(pairs) - 1 for pairs in several))
    return float(first), float(second)


def places(codes: Codes) -> tuple[float, float]:
    """The mean code, and the share of weights in the highest bucket of int2, into which the overflow is clamped."""
    return codes.mean, float(bucket_shares(codes, NARROW)[-2:].sum())


def paired_gains(ours: MeasuredReadOut, theirs: MeasuredReadOut) -> PairedGains:
    """The paired gain of ours over theirs, over the seeds that both have."""
    seeds = [seed for seed in ours.seeds if seed in theirs.seeds]
    task_avg, log_pplx = _differences(ours.over(seeds), theirs.over(seeds))
    each = [_means(ours.seeds[seed], theirs.seeds[seed]) for seed in seeds] if len(seeds) > 1 else []
    found = PairedGains(
        _gain(task_avg, +1, [difference for difference, _ in each]),
        _gain(log_pplx, -1, [difference for _, difference in each]),
        both_failed=ours.has_failed and theirs.has_failed,
    )
    noise = noise_between(ours, theirs)
    # Two read-outs of one checkpoint do not differ by training.
    if noise is None or ours.cells & theirs.cells:
        return found
    reach = noise.reach(len(seeds))
    return replace(
        found,
        task_avg=replace(found.task_avg, noise=reach * noise.task_avg),
        log_pplx=replace(found.log_pplx, noise=reach * noise.log_pplx),
    )


def noise_between(ours: MeasuredReadOut, theirs: MeasuredReadOut) -> Noise | None:
    """The noise of training of a difference, whichever row is the trained one; of both, the larger."""
    known = [read.noise for read in (ours, theirs) if read.noise is not None]
    return max(known, key=lambda noise: noise.log_pplx, default=None)


def _differences(ours: Outcomes, theirs: Outcomes) -> tuple[Difference, Difference]:
    tasks = [task for task in ours if task not in TEXT]
    if not tasks:
        raise UserError(
            "a rule that asks for Task Avg judges a read-out without tasks; take one of analysis/claims/margins.py, or "
            "list tasks in readout.tasks"
        )
    return (
        paired_test([(ours[task].tolist(), theirs[task].tolist()) for task in tasks]),
        paired_test([(ours[LOG_PPLX].tolist(), theirs[LOG_PPLX].tolist())]),
    )


def _means(ours: Outcomes, theirs: Outcomes) -> tuple[float, float]:
    """The mean differences of Task Avg and log perplexity, without errors."""
    tasks = [task for task in ours if task not in TEXT]
    task_avg = np.mean([ours[task].mean() - theirs[task].mean() for task in tasks])
    return float(task_avg), float(ours[LOG_PPLX].mean() - theirs[LOG_PPLX].mean())


def _gain(difference: Difference, sign: int, by_seed: Sequence[float]) -> Gain:
    return Gain(
        sign * difference.mean,
        difference.stderr,
        difference.p_value,
        difference.num_documents,
        tuple(sign * one for one in by_seed),
        freedom=difference.freedom,
    )


def over_chance(read: MeasuredReadOut) -> Gain:
    """The gain of Task Avg over guessing, without BoolQ, whose two answers are not equally frequent."""
    known = {task: values for task, values in read.outcomes.items() if task in CHANCE and task != "boolq"}
    if not known:
        raise UserError("the rule about chance needs a task of the paper besides boolq; add one to readout.tasks")
    return _gain(guess_test([(values.tolist(), CHANCE[task]) for task, values in known.items()]), +1, [])


def below_unigram(read: MeasuredReadOut) -> Gain:
    """The gain of log perplexity over a unigram model, which knows only the frequencies of tokens."""
    values = read.outcomes[LOG_PPLX]
    return _gain(paired_test([(values.tolist(), [read.limit] * len(values))]), -1, [])


def signed(value: float, form: str) -> str:
    """A number with its sign: `+0.4`, `−0.31`; one that rounds to zero is `+0.0`."""
    return f"{value:+z{form}}".replace("-", "−")


# --- what the paper prints -------------------------------------------------------------------------------------------


def printed(number: int, ours: ReadOut, theirs: ReadOut) -> str:
    """`Gemma-2 2B +1.0, Gemma-2 9B +3.1`: the same difference of Task Avg in Table `number` of MatQuant, per model."""
    table = published.table(number)
    table = table[table["metric"] == TASK_AVG]
    table = table.assign(value=table["should_read"].fillna(table["value"]))
    values = table.set_index(["model", "base", "method", "width"])["value"]
    found = []
    for model in dict.fromkeys(table["model"]):
        sides = [values.get((model, read.base, read.method, read.plan)) for read in (ours, theirs)]
        both = [float(np.ravel(side)[0]) for side in sides if side is not None]
        if len(both) == 2:
            difference = both[0] - both[1]
            found.append(f"{model_name(model)} {'–' if pd.isna(difference) else signed(difference, '.1f')}")
    return ", ".join(found)
