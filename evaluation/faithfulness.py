"""Compares our scores with those of lm-eval's command line: same weights, documents and batch size, same numbers.

    matquant faithfulness base=minmax bits=int8 readout.limit=10 readout.dtype=float32 --plans int8 int2

Every read-out is scored here, exported as a Hugging Face folder, and scored by lm-eval in a process of its
own.  Accuracies have to be the same and, in float32, log-likelihoods have to agree to 1e-4 nats and generated texts to
the letter; otherwise the exit status is 1.  So have the scores of groups, with their standard errors.  In bfloat16
neither lm-eval with another batch size nor our scoring gives the same bits, so there the documents that differ are only
counted.
"""

from __future__ import annotations

import glob
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.asked import asked_tasks, prompting, wanted
from evaluation.export import PREFIX, Exported, export, require_places
from evaluation.lm_eval_patches import offline_environment
from evaluation.planning.preflight import check_tasks, refusals
from evaluation.protocol import task_source
from evaluation.results.metrics import is_error, is_fraction
from evaluation.sources.loading import loaded_task
from evaluation.tasks.group_scores import group_metrics
from evaluation.tasks.scoring import TaskScore, document_columns, language_model, scalar_metrics, score_tasks
from matquant.command.parsing import parse
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.models.devices import pick_device
from matquant.models.loading import load_model
from matquant.notation import FULL, Plan
from matquant.runs.tracking import NoTracker
from matquant.training.train import train

CLOSE = 1e-4
"""The relative difference of two metrics that are no shares of documents, such as perplexities, that counts as none."""
TOLERANCE = 1e-4
"""The largest difference of two log-likelihoods, in nats and in float32, that counts as none."""
RELATIVE_TOLERANCE = 5e-6
"""The same as a share of the log-likelihood; the larger of the two holds.

A collapsed read-out gives an answer -700 nats, where float32 has steps of 6e-5 and lm-eval differs from itself by
1.4e-4 between batch sizes 16 and 1.
"""


@dataclass(frozen=True)
class TaskOutcome:
    """A task's metrics, the outcome of each document in each, and each answer: its log-likelihood, or its text.

    A group has metrics alone.
    """

    metrics: Mapping[str, float]
    outcomes: Mapping[str, Sequence[float]]
    answers: Sequence[float | str] = ()


ReadoutOutcomes = Mapping[str, TaskOutcome]
"""All tasks of one read-out."""


@dataclass(frozen=True)
class TaskPair:
    """One task measured twice, by us and by lm-eval."""

    task: str
    ours: TaskOutcome
    theirs: TaskOutcome

    @property
    def same_metrics(self) -> bool:
        return all(_same(name, self.ours.metrics[name], self.theirs.metrics[name]) for name in self.metrics)

    @property
    def metrics(self) -> list[str]:
        return [name for name in self.ours.metrics if name in self.theirs.metrics]

    @property
    def num_different(self) -> int:
        """The number of documents whose outcome differs in any metric."""
        names = [name for name in self.ours.outcomes if name in self.theirs.outcomes and name != "doc_id"]
        pairs = [zip(self.ours.outcomes[name], self.theirs.outcomes[name], strict=True) for name in names]
        return sum(any(a != b for a, b in document) for document in zip(*pairs, strict=True))

    @property
    def largest_gap(self) -> float:
        """Nats between the log-likelihoods of an answer; infinite where two texts differ."""
        return max((_gap(a, b) for a, b in self._pairs), default=0.0)

    @property
    def same_answers(self) -> bool:
        return all(_gap(a, b) <= max(TOLERANCE, RELATIVE_TOLERANCE * _size(b)) for a, b in self._pairs)

    @property
    def _pairs(self) -> list[tuple[float | str, float | str]]:
        return list(zip(self.ours.answers, self.theirs.answers, strict=True))


def _same(name: str, ours: float, theirs: float) -> bool:
    """Shares of documents have to be equal; what is computed of numbers, nearly."""
    is_exact = is_fraction(name) and not is_error(name)
    return ours == theirs if is_exact else math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=1e-9)


def _gap(ours: float | str, theirs: float | str) -> float:
    if isinstance(ours, str) or isinstance(theirs, str):
        return 0.0 if ours == theirs else math.inf
    return abs(ours - theirs)


def _size(answer: float | str) -> float:
    return 0.0 if isinstance(answer, str) else abs(answer)


def run_lm_eval(exported: Exported, setup: Setup, *, add_bos: bool) -> ReadoutOutcomes:
    """lm-eval's command line on an exported read-out, offline, in a process of its own."""
    command = exported.command(setup.readout, add_bos=add_bos)
    command[:1] = [sys.executable, "-m", "lm_eval"]
    done = subprocess.run(command, env=offline_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lm-eval ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    (path,) = exported.output.rglob("results_*.json")
    results, asked = json.loads(path.read_text())["results"], asked_tasks(setup.readout)
    found = {}
    for name, leaf in asked.leaves.items():
        called = PREFIX + name if PREFIX + name in results else name
        found[name] = _theirs(results[called], exported, called, is_text=leaf.generates)
    return found | {name: TaskOutcome(scalar_metrics(results[name]), {}) for name in asked.groups}


def _theirs(results: Mapping[str, Any], exported: Exported, name: str, *, is_text: bool) -> TaskOutcome:
    (path,) = exported.output.rglob(f"samples_{glob.escape(name)}_*.jsonl")
    samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    of_one_filter = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    answers = [response[0] for sample in of_one_filter for response in sample["resps"]]
    return TaskOutcome(
        _without_errors(scalar_metrics(results)),
        document_columns(samples),
        answers if is_text else [float(one[0] if isinstance(one, list) else one) for one in answers],
    )


def _without_errors(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not is_error(name)}


class OurMeasurement:
    """Our scoring on one model in memory, plan after plan."""

    def __init__(self, cell: Cell, setup: Setup) -> None:
        self.cell, self.setup, readout = cell, setup, setup.readout
        self.loaded = load_model(cell.model, cache=setup.paths.cache, dtype=readout.dtype, device=pick_device(setup))
        self.asked, self.prompting = asked_tasks(readout), prompting(readout)
        self.tasks = {
            name: loaded_task(wanted(leaf, readout, task_source(readout)), readout.limit)
            for name, leaf in self.asked.leaves.items()
        }
        self.lm = language_model(
            *self.loaded,
            batch_size=readout.batch_size,
            add_bos=cell.sets_bos,
        )

    def measure(self) -> ReadoutOutcomes:
        """Scores the tasks with the weights that are in the model now."""
        found, scores = dict[str, TaskOutcome](), dict[str, TaskScore]()
        arriving = score_tasks(
            *(self.lm, self.tasks),
            limit=self.setup.readout.limit,
            description="",
            bar=_NoBar(),
            prompting=self.prompting,
        )
        for name, score in arriving:
            instances = sorted(self.tasks[name].instances, key=lambda instance: (instance.doc_id, instance.idx))
            answers = [one.resps[0] for one in instances]
            texts = [
                one if isinstance(one, str) else float(one[0] if isinstance(one, tuple) else one) for one in answers
            ]
            found[name], scores[name] = TaskOutcome(_without_errors(score.metrics), score.documents, texts), score
        for name, group in self.asked.groups.items():
            metrics = group_metrics(group, {leaf.name: scores[leaf.name] for leaf in group.leaves})
            found[name] = TaskOutcome(metrics, {})
        return found


class _NoBar:
    def update(self, n: int = 1, /) -> None:
        pass


def pair_tasks(ours: ReadoutOutcomes, theirs: ReadoutOutcomes) -> list[TaskPair]:
    """The tasks of one read-out, each with both of its measurements."""
    return [TaskPair(task, outcome, theirs[task]) for task, outcome in ours.items()]


def report(plan: Plan, pairs: Sequence[TaskPair], *, exact: bool) -> bool:
    """Prints a line for each task; True if everything agrees as it should."""
    agree = True
    for one in pairs:
        good = one.same_metrics and (not exact or one.same_answers)
        agree &= good
        values = "  ".join(
            f"{name} {_shown(name, one.ours.metrics[name])} / {_shown(name, one.theirs.metrics[name])}"
            for name in one.metrics
            if not is_error(name)
        )
        print(
            f"{plan!s:8} {one.task:14} {values:42}  documents that differ {one.num_different:3d}  "
            f"largest gap {one.largest_gap:.1e} nats  {'same' if good else 'DIFFERENT'}"
        )
    return agree


def _shown(name: str, value: float) -> str:
    return f"{100 * value:5.1f}" if is_fraction(name) else f"{value:.4g}"


def main(arguments: Sequence[str]) -> int:
    given = parse("faithfulness", arguments)
    study = load_study(given.overrides)
    cell = study.one_cell()
    _check(cell, study.setup, given.plans)
    return 0 if run(cell, study.setup, given.plans) else 1


def _check(cell: Cell, setup: Setup, plans: Sequence[Plan]) -> None:
    """Refuses, before anything is trained, a cell that cannot be and plans that it does not have."""
    if cell.base.kind == "foreign":
        raise UserError("base=foreign trains and exports nothing that could be compared; choose another base")
    for plan in plans:
        if (str(plan) == FULL) != (cell.objective is None):
            raise UserError(f"{plan} is no read-out of base={cell.base.kind}; --plans full goes with base=none alone")
    check_tasks(setup)
    for reason in refusals([cell], setup).values():
        raise UserError(reason)
    require_places(cell, setup)


def run(cell: Cell, setup: Setup, plans: Sequence[Plan]) -> bool:
    """Trains a missing checkpoint and measures every plan in both ways; True if they agree."""
    train(cell, setup, NoTracker())
    exact, agree = setup.readout.dtype == "float32", True
    ours = OurMeasurement(cell, setup)
    print("values: ours / lm-eval's")
    for plan in plans:
        with tempfile.TemporaryDirectory() as folder:
            exported = export(cell, setup, plan, Path(folder), loaded=ours.loaded)
            pairs = pair_tasks(ours.measure(), run_lm_eval(exported, setup, add_bos=cell.sets_bos))
        agree &= report(plan, pairs, exact=exact)
    return agree or not exact
