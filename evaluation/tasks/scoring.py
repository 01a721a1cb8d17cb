"""lm-eval's scores of one plain Hugging Face model that is already in memory: accuracy per task and per document.

A read-out is an ordinary `transformers` model by now; lm-eval builds the requests and makes metrics of the answers.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate

from evaluation.asked import PLAIN
from evaluation.lm_eval_patches import build_requests_once, no_bars, quiet_lm_eval
from evaluation.tasks.language_model import LogitsNotFiniteError, SharedContextLM
from matquant.errors import NotFiniteError, UserError
from matquant.models.checks import longest_text
from matquant.runs.stopping import interrupts_win

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evaluation.asked import Prompting

# Draws for the few metrics without a closed-form error; for a mean, as acc is, any positive number means the formula.
BOOTSTRAP_ITERS = 1000


@dataclass(frozen=True)
class TaskScore:
    """The scores of one model on one task.

    `metrics`: fractions between 0 and 1 (acc, acc_norm) with their standard errors (acc_stderr), and whatever other
    scalars lm-eval defines for the task.  `documents`: the same per document, as columns (doc_id, acc, acc_norm).
    `seconds`: wall clock, from the first prompt to the last metric.
    """

    metrics: dict[str, float]
    documents: dict[str, list[Any]]
    num_documents: int
    seconds: float


def score_tasks(
    lm: SharedContextLM,
    tasks: Mapping[str, Task],
    *,
    limit: int | None,
    description: str,
    bar: Bar,
    prompting: Prompting = PLAIN,
) -> Iterator[tuple[str, TaskScore]]:
    """Scores a model on the first `limit` documents of each task (None: all), yielding each as it is done.

    A task that fails does not keep the others from being scored: failures are raised together after the last one, as an
    ExceptionGroup whose members name their task.  A score depends on the arguments alone, never on earlier calls.
    Leaves the model in eval mode.  `bar` is moved by one for each answer.
    """
    failures: list[Exception] = []
    for name, task in tasks.items():
        try:
            with interrupts_win(), _fixed_seeds(lm.device):
                score = _score(lm, name, task, limit=limit, bar=bar, prompting=prompting)
        except LogitsNotFiniteError as error:
            where = "" if error.document is None else f", document {error.document}"
            failures.append(
                NotFiniteError(f"the logits of {description} are not finite on {name}{where}; {wider(lm.model.dtype)}")
            )
        except Exception as error:  # of any kind: the tasks that follow are still worth scoring
            error.add_note(f"while scoring {description} on {name}")
            failures.append(error)
        else:
            yield name, score
    if failures and all(isinstance(error, UserError) for error in failures):
        raise failures[0]  # the same mistake, as a rule; the sentence about one is enough
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(tasks)} tasks could not be scored on {description}", failures)


def language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    add_bos: bool,
) -> SharedContextLM:
    """The model in lm-eval's form; UserError if a BOS token is asked for that the tokenizer does not set."""
    # lm-eval only lets the tokenizer add its special tokens: one that adds none would go without BOS, silently.
    if add_bos and (tokenizer.bos_token_id is None or tokenizer.encode("a")[:1] != [tokenizer.bos_token_id]):
        raise UserError(
            f"{type(tokenizer).__name__} sets no BOS token before a text ({tokenizer.bos_token=}); "
            "set model.add_bos=false"
        )
    with quiet_lm_eval():
        return SharedContextLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            add_bos_token=add_bos,
            max_length=longest_text(model.config),
        )


def wider(dtype: torch.dtype) -> str:
    """The remedy for logits that are not finite in a dtype."""
    if dtype != torch.float32:
        return "set readout.dtype=float32"
    return "the weights are too large even for float32: leave the plan out of readout.plans, or train the cell anew"


def prepare(
    task: Task,
    *,
    limit: int | None,
    prompting: Prompting = PLAIN,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> int:
    """Builds the requests of a task once for all models that will answer them; returns the number of their answers."""
    build_requests_once(task, limit=limit, prompting=prompting, tokenizer=tokenizer)
    return sum(instance.repeats or 1 for instance in task.instances)


def num_answers(
    tasks: Mapping[str, Task],
    *,
    limit: int | None,
    prompting: Prompting = PLAIN,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, int]:
    """The number of answers that each task asks for; 0 for a task that fails here, which fails again when scored."""
    sizes = {}
    for name, task in tasks.items():
        try:
            sizes[name] = prepare(task, limit=limit, prompting=prompting, tokenizer=tokenizer)
        except Exception:  # of any kind: `score_tasks` meets it again, and keeps the other tasks from it
            sizes[name] = 0
    return sizes


def _score(
    lm: SharedContextLM, name: str, task: Task, *, limit: int | None, bar: Bar, prompting: Prompting
) -> TaskScore:
    start, waiting = time.perf_counter(), prepare(task, limit=limit, prompting=prompting, tokenizer=lm.tokenizer)

    def move(answers: int) -> None:
        nonlocal waiting
        waiting -= answers
        bar.update(answers)

    lm.on_scored = move
    # Not simple_evaluate: without need it reads lm-eval's whole index (15 s) and describes the machine on every call.
    # No response cache is used, because lm-eval's is not keyed by the weights.
    with quiet_lm_eval(), no_bars():
        results: Any = evaluate(lm=lm, task_dict={"tasks": {name: task}}, limit=limit, bootstrap_iters=BOOTSTRAP_ITERS)
    bar.update(waiting)  # what lm-eval has answered before: the same text asked twice
    return TaskScore(
        metrics=scalar_metrics(results["results"][name]),
        documents=document_columns(results["samples"][name]),
        num_documents=results["n-samples"][name]["effective"],
        seconds=time.perf_counter() - start,
    )


def scalar_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's results of a task as plain numbers: `acc,none` becomes `acc`; a named filter stays in the name."""
    return {
        metric.removesuffix(",none"): float(value)
        for metric, value in results.items()
        if "," in metric and isinstance(value, Real)
    }


def document_columns(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Per-document outcomes as columns, by document: `doc_id` and every metric that is one number a document.

    A metric that some documents lack is None there; with several filters, each has its columns (`exact_match,strict`).
    """
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], {})
        for metric in sample["metrics"]:
            if isinstance(sample[metric], Real):
                row[f"{metric},{sample['filter']}".removesuffix(",none")] = _outcome(sample[metric])
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {"doc_id": list(rows), **{name: [row.get(name) for row in rows.values()] for name in names}}


def _outcome(value: Real) -> int | float:
    """The outcome of a document: 1 if right, 0 if wrong, any other number as it is."""
    number = float(value)
    return int(number) if number in (0.0, 1.0) else number


@contextmanager
def _fixed_seeds(device: torch.device) -> Iterator[None]:
    """Sets lm-eval's default seeds, and restores the caller's random state afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class Bar(Protocol):
    """A counter of answers: a tqdm bar."""

    def update(self, n: int = 1, /) -> Any: ...
