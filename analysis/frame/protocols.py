"""One protocol a task: numbers that were measured in different ways do not stand in one column.

An accuracy over 50 documents and one over 10000, or of two versions of lm-eval, mean different things.  For each task
of a model the results of one protocol are kept and the others left out; a difference that remains, between the tasks of
an average or between models, is named in a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.results.store import LOG_PPLX, Result, protocol_id

if TYPE_CHECKING:
    from evaluation.results.store import Protocol
    from matquant.config.setup import Readout

SHARED_BY_TASKS = ("limit", "batch_size", "dtype", "lm_eval")
SHARED_BY_TEXT = ("num_sequences", "tokens_per_document")
SHARED_BY_MODELS = ("limit", "batch_size", "dtype", "lm_eval", "data", "num_fewshot", *SHARED_BY_TEXT)
"""The fields whose differences between columns of a table are reported; `add_bos` belongs to the model."""

LEFT_OUT = "left out, because of another protocol"


def one_protocol_a_task(
    results: Sequence[Result], readout: Readout, models: Mapping[str, str]
) -> tuple[list[Result], list[str]]:
    """The results of one protocol for each task of a model, and sentences for those left out or measured otherwise.

    Chosen is the protocol the read-out asks for, then the one with most results, then the one measured last.  Models
    are apart because a protocol may have to differ between them: Gemma needs a BOS token, others must not have it.
    """
    columns: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        columns.setdefault((models[result.cell_id], result.task), []).append(result)
    kept: list[Result] = []
    problems: dict[str, list[Result]] = {}
    for column in columns.values():
        groups = _by_protocol(column)
        chosen = max(groups, key=lambda group: (not _deviation(group[0], readout), len(group), _newest(group)))
        kept += chosen
        for group in groups:
            if group is not chosen:
                difference = _difference(group[0].protocol, chosen[0].protocol)
                problems.setdefault(f"{LEFT_OUT}: {difference}", []).extend(group)
        if deviation := _deviation(chosen[0], readout):
            problems.setdefault(f"measured with {deviation}, as the read-out asks; evaluate again", []).extend(chosen)
    sentences = [f"{_whose(group)} {problem}" for problem, group in problems.items()]
    for model in dict.fromkeys(models.values()):
        sentences += _mixed_average([result for result in kept if models[result.cell_id] == model])
    return kept, [*sentences, *_mixed_models(kept, models)]


def mixed_checkpoints(results: Iterable[Result]) -> list[str]:
    """A sentence for each cell whose results were read from more than one checkpoint."""
    checkpoints: dict[str, set[str | None]] = {}
    for result in results:
        checkpoints.setdefault(result.cell_id, set()).add(result.checkpoint)
    return [
        f"{cell_id}: results come from {len(found)} different checkpoints; evaluate the cell again"
        for cell_id, found in checkpoints.items()
        if len(found) > 1
    ]


def _whose(results: Sequence[Result]) -> str:
    """`12 results (piqa, boolq; smollm2_135m-none-22ace2a0 at full and others)`."""
    tasks = ", ".join(dict.fromkeys(result.task for result in results))
    reads = list(dict.fromkeys(f"{result.cell_id} at {result.plan}" for result in results))
    return f"{len(results)} results ({tasks}; {reads[0]}{' and others' if len(reads) > 1 else ''})"


def _by_protocol(results: Iterable[Result]) -> list[list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(protocol_id(result.protocol), []).append(result)
    return list(groups.values())


def _newest(group: Iterable[Result]) -> str:
    return max(str(result.provenance.get("finished", "")) for result in group)


def _deviation(result: Result, readout: Readout) -> str:
    """The differences of a result's protocol from the one the read-out asks for; empty if there are none."""
    fields = ("dtype",) if result.task == LOG_PPLX else ("limit", "batch_size", "dtype")
    asked = {name: getattr(readout, name) for name in fields if name in result.protocol}
    return _difference({name: result.protocol[name] for name in asked}, asked)


def _difference(ours: Protocol, theirs: Protocol) -> str:
    """`limit 50 instead of 100, dtype float32 instead of bfloat16`."""
    fields = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return ", ".join(f"{name} {_value(ours.get(name))} instead of {_value(theirs.get(name))}" for name in fields)


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def _mixed_average(results: Iterable[Result]) -> list[str]:
    """A sentence for each field in which the tasks of one Task Avg differ from one another."""
    accuracies = [result for result in results if result.task != LOG_PPLX]
    problems = []
    for name in SHARED_BY_TASKS:
        tasks: dict[str, set[str]] = {}
        for result in accuracies:
            tasks.setdefault(_value(result.protocol.get(name)), set()).add(result.task)
        if len(tasks) > 1:
            shown = "; ".join(f"{value} for {', '.join(sorted(of))}" for value, of in tasks.items())
            problems.append(f"Task Avg is over tasks that differ in {name}: {shown}")
    return problems


def _mixed_models(results: Iterable[Result], models: Mapping[str, str]) -> list[str]:
    """A sentence for each field in which one task was measured differently from model to model."""
    columns = {(result.task, models[result.cell_id]): result.protocol for result in results}
    problems: dict[str, list[str]] = {}
    for task in dict.fromkeys(task for task, _ in columns):
        of_task = {model: protocol for (name, model), protocol in columns.items() if name == task}
        for name in SHARED_BY_MODELS:
            values: dict[str, list[str]] = {}
            for model, protocol in of_task.items():
                values.setdefault(_value(protocol.get(name)), []).append(model)
            if len(values) > 1:
                shown = "; ".join(f"{value} for {', '.join(of)}" for value, of in values.items())
                problems.setdefault(f"differ in {name}: {shown}", []).append(task)
    return [f"{', '.join(tasks)}: models {problem}; do not compare them" for problem, tasks in problems.items()]
