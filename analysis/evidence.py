"""What was measured about a claim: read-outs by the paper's names, paired on the same documents, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from analysis import published, verdicts
from analysis.codes import bucket_shares, codes_of
from analysis.names import flatten, model_name
from analysis.significance import LEVEL, TASK_AVG, outcomes_of, paired_bootstrap
from analysis.summary import CHANCE
from analysis.verdicts import UNIGRAM, Comparison, Gain, Verdict
from evaluation.results import LOG_PPLX
from matquant.notation import Slice

if TYPE_CHECKING:
    from analysis.codes import Codes
    from analysis.show import OpenStudy
    from analysis.significance import Difference, Outcomes
    from matquant.config.cell import Cell

NARROW = Slice(2)


@dataclass(frozen=True)
class ReadOut:
    """A read-out as the tables name it; `facts` tell it from its namesakes: `weights`, or `base.student_input`."""

    base: str
    method: str
    plan: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells rivals apart: `Sliced int8`, `pyramid`, `int6`."""
        mixed = self.method.removeprefix("Mix'n'Match ")
        return mixed if mixed != self.method else f"{self.method} at {self.plan}"


@dataclass(frozen=True)
class Noise:
    """What training once more changes: standard deviations over seeds, pooled, with their degrees of freedom.

    `codes`: of the mean code and of the share of weights in the highest bucket; zeros where no seed's codes are known.
    """

    task_avg: float
    log_pplx: float
    freedom: int
    codes: tuple[float, float] = (0.0, 0.0)

    def reach(self, num_seeds: int) -> float:
        """How many of them two means over so many seeds may lie apart by training alone, 19 times in 20."""
        return float(student_t.ppf(1 - LEVEL / 2, self.freedom)) * math.sqrt(2 / num_seeds)


@dataclass(frozen=True)
class Measured:
    """What one read-out has reached: for every seed the outcomes of every document; its bits and codes.

    `codes`: of the seeds that have them; `cells`: the ids of its checkpoints; `noise`: what training such a one once
    more changes, where that is known.
    """

    read: ReadOut
    seeds: Mapping[int, Outcomes]
    effective_bits: float = float("nan")
    codes: Mapping[int, Codes] = field(default_factory=dict)
    cells: frozenset[str] = frozenset()
    noise: Noise | None = None

    def over(self, seeds: Sequence[int]) -> Outcomes:
        """The mean over seeds, document by document."""
        return {task: np.mean([self.seeds[seed][task] for seed in seeds], axis=0) for task in self.tasks}

    @property
    def tasks(self) -> list[str]:
        return list(next(iter(self.seeds.values())))

    @cached_property
    def outcomes(self) -> Outcomes:
        return self.over(list(self.seeds))

    @property
    def task_avg(self) -> float:
        return _task_avg(self.outcomes)

    @property
    def log_pplx(self) -> float:
        return float(self.outcomes[LOG_PPLX].mean())


def _task_avg(outcomes: Outcomes) -> float:
    return float(np.mean([values.mean() for task, values in outcomes.items() if task != LOG_PPLX]))


@dataclass(frozen=True)
class Finding:
    """What was measured, in words, what it says about the claim, and in which experiment of the study it was."""

    measured: str
    verdict: Verdict
    experiment: str = ""


NOT_MEASURED = Finding("", Verdict("not measured yet"))

Judge = Callable[[Measured, Sequence[Measured]], Finding]
"""What a claim asks of its read-out and of those it is held against."""

# --- reading ---------------------------------------------------------------------------------------------------------


def cells_of(study: OpenStudy, read: ReadOut) -> list[tuple[int, str, str]]:
    """Seed, cell id and plan label of a read-out, a line for each seed; empty where the study has no such read-out.

    Raises ValueError where the words fit several configurations: then `facts` have to tell them apart.
    """
    expected = study.loaded.expected.drop_duplicates(["cell_id", "plan"])
    # A searched plan carries after a dash how it was searched for.
    plans = expected["plan"].str.partition("-")[0]
    found = expected[(expected["base"] == read.base) & (expected["method"] == read.method) & (plans == read.plan)]
    cells = {cell.id: cell for cell in study.study.cells}
    fits = [_has(cells[row["cell_id"]], row, read.facts) for row in found.to_dict("records")]
    found = found[np.array(fits, dtype=bool)]
    if found["config_id"].nunique() > 1:
        raise ValueError(f"{read} fits several configurations of {study.study.name}: {', '.join(found['label'])}")
    return list(found[["seed", "cell_id", "plan"]].itertuples(index=False, name=None))


def _has(cell: Cell, row: Mapping[Any, Any], facts: Mapping[str, str]) -> bool:
    """True if a cell has all the facts; a fact is a column of the table or a dotted key of the cell."""
    of_cell = {**dict(flatten(cell.model_dump(mode="json"))), **{str(key): value for key, value in row.items()}}
    return all(str(of_cell.get(key)) == value for key, value in facts.items())


def measured(study: OpenStudy, read: ReadOut) -> Measured | None:
    """A read-out with all seeds that are measured on every task; None where there is none."""
    seeds: dict[int, Outcomes] = {}
    cells = cells_of(study, read)
    loaded = study.loaded
    wanted = list(loaded.expected["task"].unique())
    for seed, cell_id, plan in cells:
        found = outcomes_of(loaded, [cell_id], plan)
        if list(found) == wanted and LOG_PPLX in found:
            seeds[seed] = found
    if not seeds:
        return None
    _, cell_id, plan = next(line for line in cells if line[0] in seeds)
    rows = loaded.frame[(loaded.frame["cell_id"] == cell_id) & (loaded.frame["plan"] == plan)]
    ids = {seed: cell_id for seed, cell_id, _ in cells if seed in seeds}
    by_id = codes_of(loaded.store, ids.values())
    codes = {seed: by_id[cell_id] for seed, cell_id in ids.items() if cell_id in by_id}
    return Measured(read, seeds, float(rows["effective_bits"].iloc[0]), codes, frozenset(ids.values()))


def noise_of(several: Sequence[Measured]) -> Noise | None:
    """What a training changes, from read-outs of the same width with several seeds each; None where none has them."""
    each = [[(_task_avg(found), float(found[LOG_PPLX].mean())) for found in read.seeds.values()] for read in several]
    freedom = sum(len(pairs) - 1 for pairs in each)
    if freedom < 1:
        return None
    task_avg, log_pplx = _deviations(each)
    mean_code, highest = _deviations([[_places(codes) for codes in read.codes.values()] for read in several])
    return Noise(task_avg, log_pplx, freedom, (mean_code, highest))


def _deviations(each: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Standard deviations of pairs within each group, pooled; zeros where no group has two."""
    several = [np.array(pairs) for pairs in each if len(pairs) > 1]
    if not several:
        return 0.0, 0.0
    squares = np.sum([pairs.var(axis=0) * len(pairs) for pairs in several], axis=0)
    first, second = np.sqrt(squares / sum(len(pairs) - 1 for pairs in several))
    return float(first), float(second)


def _places(codes: Codes) -> tuple[float, float]:
    """The mean code, and the share of weights in the highest bucket of int2: what overflows is clamped into it."""
    return codes.mean, float(bucket_shares(codes, NARROW)[-2:].sum())


def compare(ours: Measured, theirs: Measured) -> Comparison:
    """The paired gain of ours over theirs, over the seeds that both have."""
    seeds = [seed for seed in ours.seeds if seed in theirs.seeds]
    task_avg, log_pplx = _differences(ours.over(seeds), theirs.over(seeds))
    each = [_means(ours.seeds[seed], theirs.seeds[seed]) for seed in seeds] if len(seeds) > 1 else []
    found = Comparison(
        _gain(task_avg, +1, [difference for difference, _ in each]),
        _gain(log_pplx, -1, [difference for _, difference in each]),
        both_failed=min(ours.log_pplx, theirs.log_pplx) > UNIGRAM,
    )
    # Two read-outs of one checkpoint owe nothing to training.
    if ours.noise is None or ours.cells & theirs.cells:
        return found
    reach = ours.noise.reach(len(seeds))
    return replace(
        found,
        task_avg=replace(found.task_avg, noise=reach * ours.noise.task_avg),
        log_pplx=replace(found.log_pplx, noise=reach * ours.noise.log_pplx),
    )


def _differences(ours: Outcomes, theirs: Outcomes) -> tuple[Difference, Difference]:
    tasks = [task for task in ours if task != LOG_PPLX]
    return (
        paired_bootstrap([(ours[task].tolist(), theirs[task].tolist()) for task in tasks]),
        paired_bootstrap([(ours[LOG_PPLX].tolist(), theirs[LOG_PPLX].tolist())]),
    )


def _means(ours: Outcomes, theirs: Outcomes) -> tuple[float, float]:
    """The same differences without their errors."""
    tasks = [task for task in ours if task != LOG_PPLX]
    task_avg = np.mean([ours[task].mean() - theirs[task].mean() for task in tasks])
    return float(task_avg), float(ours[LOG_PPLX].mean() - theirs[LOG_PPLX].mean())


def _gain(difference: Difference, sign: int, by_seed: Sequence[float]) -> Gain:
    return Gain(
        sign * difference.mean,
        difference.stderr,
        difference.p_value,
        difference.num_documents,
        tuple(sign * one for one in by_seed),
    )


def over_chance(read: Measured) -> Gain:
    """Task Avg over what guessing reaches; without BoolQ, whose two answers are not equally frequent."""
    values = {task: values for task, values in read.outcomes.items() if task not in (LOG_PPLX, "boolq")}
    pairs = [(of_task.tolist(), [CHANCE[task]] * len(of_task)) for task, of_task in values.items()]
    return _gain(paired_bootstrap(pairs), +1, [])


def below_unigram(read: Measured) -> Gain:
    """How far log perplexity lies below what the frequencies of single tokens reach."""
    values = read.outcomes[LOG_PPLX]
    return _gain(paired_bootstrap([(values.tolist(), [UNIGRAM] * len(values))]), -1, [])


# --- words -----------------------------------------------------------------------------------------------------------


def signed(value: float, form: str) -> str:
    """`+0.4`, `−0.31`; what rounds to zero is `+0.0`."""
    return f"{value:+z{form}}".replace("-", "−")


def p_text(gain: Gain) -> str:
    """A bootstrap says no more than that p is small where no draw, or hardly one, had the other sign."""
    return f"p = {gain.p_value:.2g}" if gain.p_value >= 0.001 else "p < 0.001"


def nats(gain: Gain) -> str:
    """`−0.31 ± 0.02 nats (p < 0.001)`: ours minus theirs, so that less is better; a digit more where that is zero."""
    form = ".2f" if gain.stderr >= 0.005 else ".3f"
    return f"{signed(-gain.mean, form)} ± {gain.stderr:{form}} nats ({p_text(gain)})"


def points(gain: Gain) -> str:
    """`Task Avg +0.4 ± 1.1 (p = 0.7)`: ours minus theirs in percent points."""
    return f"Task Avg {signed(100 * gain.mean, '.1f')} ± {100 * gain.stderr:.1f} ({p_text(gain)})"


def noise_text(found: Comparison) -> str:
    """`; by training alone up to 0.84 nats, 3.8 points`; empty where nobody knows."""
    if not (found.log_pplx.noise or found.task_avg.noise):
        return ""
    return f"; by training alone up to {found.log_pplx.noise:.2f} nats, {100 * found.task_avg.noise:.1f} points"


def difference_text(found: Comparison) -> str:
    """Both measures, and where there are several seeds the differences of each."""
    text = f"{nats(found.log_pplx)}, {points(found.task_avg)}{noise_text(found)}"
    if not found.log_pplx.by_seed:
        return text
    log_pplx = ", ".join(signed(-gain, ".2f") for gain in found.log_pplx.by_seed)
    task_avg = ", ".join(signed(100 * gain, ".1f") for gain in found.task_avg.by_seed)
    return f"{text}; mean of {len(found.log_pplx.by_seed)} seeds, each: {log_pplx} nats; {task_avg} points"


# --- what a claim asks -----------------------------------------------------------------------------------------------


def above(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    found = compare(ours, theirs[0])
    return Finding(difference_text(found), verdicts.directional(found))


def within(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    found = compare(ours, theirs[0])
    low, high = (signed(100 * end, ".1f") for end in found.task_avg.wary_interval)
    text = f"Task Avg {signed(100 * found.task_avg.mean, '.1f')} [{low}, {high}], {nats(found.log_pplx)}"
    return Finding(text + noise_text(found), verdicts.equivalent(found))


def not_below(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    found = compare(ours, theirs[0])
    worst = signed(-found.log_pplx.interval[0], ".2f"), signed(100 * found.task_avg.interval[0], ".1f")
    text = f"{difference_text(found)}; at worst {worst[0]} nats, {worst[1]} points"
    return Finding(text, verdicts.at_least_as_good(found))


def collapsed(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    found, chance = compare(ours, theirs[0]), over_chance(ours)
    text = (
        f"{ours.log_pplx:.2f} against {theirs[0].log_pplx:.2f}: {nats(found.log_pplx)}; Task Avg "
        f"{100 * ours.task_avg:.1f}, over chance without BoolQ {signed(100 * chance.mean, '.1f')} ± "
        f"{100 * chance.stderr:.1f} ({p_text(chance)}); the other's {100 * theirs[0].task_avg:.1f}"
    )
    return Finding(text, verdicts.collapses(found, chance))


def between(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    """`theirs`: the wider and the narrower trained width of the same checkpoint."""
    wider, narrower = theirs
    to_wider, to_narrower = compare(ours, wider).log_pplx, compare(ours, narrower).log_pplx
    text = (
        f"{ours.log_pplx:.2f} between {wider.log_pplx:.2f} and {narrower.log_pplx:.2f}: {nats(to_wider)} from "
        f"{wider.read.plan}, {nats(to_narrower)} from {narrower.read.plan}"
    )
    return Finding(text, verdicts.interpolates(to_narrower, to_wider))


def best_of(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    found = [compare(ours, rival) for rival in theirs]
    pairs = zip(theirs, found, strict=True)
    texts = [f"against {rival.read.name}: {difference_text(comparison)}" for rival, comparison in pairs]
    text = "; ".join([f"{ours.log_pplx:.2f} nats", *texts])
    return Finding(text, verdicts.beats_all(found))


def trained(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    text = f"{ours.log_pplx:.2f} against {theirs[0].log_pplx:.2f} nats; token frequencies: {UNIGRAM:.2f}"
    verdict = verdicts.trains_where_the_other_fails(below_unigram(ours), below_unigram(theirs[0]))
    return Finding(text, verdict)


def higher_codes(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    seeds = [seed for seed in ours.codes if seed in theirs[0].codes]
    if not seeds:
        return NOT_MEASURED
    (mean, highest), (their_mean, their_highest) = (
        np.mean([_places(read.codes[seed]) for seed in seeds], axis=0) for read in (ours, theirs[0])
    )
    text = (
        f"mean code {mean:.3f} against {their_mean:.3f}; highest {NARROW} bucket {100 * highest:.3f} % against "
        f"{100 * their_highest:.3f} % of the weights"
    )
    moves = (float(mean - their_mean), float(highest - their_highest))
    if ours.noise is None:
        return Finding(text, verdicts.codes_move_up(moves))
    reach = ours.noise.reach(len(seeds))
    noise = (reach * ours.noise.codes[0], reach * ours.noise.codes[1])
    text += f"; by training alone up to {noise[0]:.3f} and {100 * noise[1]:.3f} %"
    return Finding(text, verdicts.codes_move_up(moves, noise))


def bits(ours: Measured, theirs: Sequence[Measured]) -> Finding:
    """`theirs`: the parent as it is rounded to nearest, whose overflow owes nothing to training."""
    text = f"{ours.effective_bits:.3f} bits"
    for codes in (codes for read in theirs for codes in read.codes.values()):
        text += f"; the same grid untrained: {NARROW.bits + bucket_shares(codes, NARROW)[-1]:.3f}"
    return Finding(text, verdicts.about_two(ours.effective_bits))


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
