"""Compares our scores with those of lm-eval's command line: same weights, documents and batch size, same numbers.

    matquant faithfulness base=minmax bits=int8 readout.limit=10 readout.dtype=float32 --plans int8 int2

Every read-out is scored here, exported as a Hugging Face folder, and scored by lm-eval in a process of its
own.  Accuracies have to be the same and, in float32, log-likelihoods have to agree to 1e-4 nats; otherwise the
exit status is 1.  In bfloat16 neither lm-eval with another batch size nor our scoring gives the same bits, so there the
documents that differ are only counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.export import PREFIX, Exported, export, require_places
from evaluation.lm_eval_patches import offline_environment
from evaluation.preflight import check_tasks, refusals
from evaluation.protocol import task_source
from evaluation.scoring import language_model, num_answers, score_tasks
from evaluation.sources.loading import load_tasks
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

METRICS = ("acc", "acc_norm")
TOLERANCE = 1e-4
"""The largest difference of two log-likelihoods, in nats and in float32, that counts as none."""
RELATIVE_TOLERANCE = 5e-6
"""The same as a share of the log-likelihood; the larger of the two holds.

A collapsed read-out gives an answer -700 nats, where float32 has steps of 6e-5 and lm-eval differs from itself by
1.4e-4 between batch sizes 16 and 1.
"""


@dataclass(frozen=True)
class TaskOutcome:
    """A task's metrics, the outcome of each document in each metric, and the log-likelihood of each answer."""

    metrics: Mapping[str, float]
    outcomes: Mapping[str, Sequence[float]]
    log_likelihoods: Sequence[float]


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
        return all(self.ours.metrics[name] == self.theirs.metrics[name] for name in self.metrics)

    @property
    def metrics(self) -> list[str]:
        return [name for name in METRICS if name in self.theirs.metrics]

    @property
    def num_different(self) -> int:
        """The number of documents whose outcome differs in any metric."""
        pairs = [zip(self.ours.outcomes[name], self.theirs.outcomes[name], strict=True) for name in self.metrics]
        return sum(any(a != b for a, b in document) for document in zip(*pairs, strict=True))

    @property
    def largest_gap(self) -> float:
        """Nats between the log-likelihoods of an answer."""
        return max(abs(a - b) for a, b in self._pairs)

    @property
    def same_log_likelihoods(self) -> bool:
        return all(abs(a - b) <= max(TOLERANCE, RELATIVE_TOLERANCE * abs(b)) for a, b in self._pairs)

    @property
    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.ours.log_likelihoods, self.theirs.log_likelihoods, strict=True))


def run_lm_eval(exported: Exported, setup: Setup, *, add_bos: bool) -> ReadoutOutcomes:
    """lm-eval's command line on an exported read-out, offline, in a process of its own."""
    command = exported.command(setup.readout, add_bos=add_bos)
    command[:1] = [sys.executable, "-m", "lm_eval"]
    done = subprocess.run(command, env=offline_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lm-eval ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    (path,) = exported.output.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    return {name.removeprefix(PREFIX): _theirs(results[name], exported, name) for name in exported.tasks}


def _theirs(results: Mapping[str, Any], exported: Exported, name: str) -> TaskOutcome:
    (path,) = exported.output.rglob(f"samples_{name}_*.jsonl")
    samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    metrics = {metric: results[f"{metric},none"] for metric in METRICS if f"{metric},none" in results}
    return TaskOutcome(
        metrics,
        {metric: [sample[metric] for sample in samples] for metric in metrics},
        [float(response[0][0]) for sample in samples for response in sample["resps"]],
    )


class OurMeasurement:
    """Our scoring on one model in memory, plan after plan."""

    def __init__(self, cell: Cell, setup: Setup) -> None:
        self.cell, self.setup, readout = cell, setup, setup.readout
        self.loaded = load_model(cell.model, cache=setup.paths.cache, dtype=readout.dtype, device=pick_device(setup))
        self.tasks = load_tasks(readout.tasks, task_source(readout), limit=readout.limit)
        num_answers(self.tasks, limit=readout.limit)
        self.lm = language_model(
            *self.loaded,
            batch_size=readout.batch_size,
            add_bos=cell.sets_bos,
        )

    def measure(self) -> ReadoutOutcomes:
        """Scores the tasks with the weights that are in the model now."""
        found = {}
        for name, score in score_tasks(
            self.lm, self.tasks, limit=self.setup.readout.limit, description="", bar=_NoBar()
        ):
            instances = sorted(self.tasks[name].instances, key=lambda instance: (instance.doc_id, instance.idx))
            documents = {metric: score.documents[metric] for metric in METRICS if metric in score.documents}
            found[name] = TaskOutcome(score.metrics, documents, [float(one.resps[0][0]) for one in instances])
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
        good = one.same_metrics and (not exact or one.same_log_likelihoods)
        agree &= good
        values = "  ".join(
            f"{name} {100 * one.ours.metrics[name]:5.1f} / {100 * one.theirs.metrics[name]:5.1f}"
            for name in one.metrics
        )
        print(
            f"{plan!s:8} {one.task:14} {values:42}  documents that differ {one.num_different:3d}  "
            f"largest gap {one.largest_gap:.1e} nats  {'same' if good else 'DIFFERENT'}"
        )
    return agree


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
