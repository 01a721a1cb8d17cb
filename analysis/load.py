"""Results on disk and the cells that should have them, as one tidy table: a row per (cell, plan, task, metric).

Three promises hold for whatever is drawn from it.  What the read-out asks for and nobody has measured is in `missing`;
a file that cannot be trusted is left out and named in `problems`; and the rows of one task were all measured under one
protocol, because an accuracy over 50 documents and one over 10000 do not belong in the same column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import pandas as pd

from evaluation.results import LOG_PPLX, Result, ResultStore, protocol_id

if TYPE_CHECKING:
    from pathlib import Path

    from evaluation.results import Key, Protocol
    from matquant.cell import Cell
    from matquant.notation import Objective, Plan
    from matquant.setup import Readout, Setup

STDERR = "_stderr"

PROTOCOL_COLUMNS = ("limit", "batch_size", "dtype", "data", "lm_eval")
COST_COLUMNS = ("effective_bits", "grid_bits", "overflow_bits", "model_bits")
"""The paper's count of bits, and what it leaves out (`matquant.extra_precision.overhead_bits`)."""
IDENTITY_COLUMNS = (
    *("cell_id", "config_id", "model", "base", "objective", "parent_bits", "method", "label"),
    *("plan", "bits", "extra_precision", "interpolated", "seed"),
)
COLUMNS = (
    *IDENTITY_COLUMNS,
    *COST_COLUMNS,
    *("task", "metric", "value", "stderr", "num_documents"),
    *PROTOCOL_COLUMNS,
    *("protocol_id", "checkpoint", "device", "seconds", "commit", "finished"),
)
BASE_NAMES = {"minmax": "MinMax", "omniquant": "OmniQuant", "qat": "QAT", "gptq": "GPTQ"}


@dataclass(frozen=True)
class LoadedResults:
    """What was measured, what should have been, and what is wrong.

    `frame` has COLUMNS: accuracies as fractions, log perplexity in nats per token, seconds of wall clock.  `expected`
    has IDENTITY_COLUMNS and `task`, a row for each (cell, plan, task) of the read-out, in the order it lists them.
    """

    frame: pd.DataFrame
    expected: pd.DataFrame
    problems: tuple[str, ...] = ()
    store: ResultStore | None = None
    keys: Mapping[tuple[str, str, str], Key] = field(default_factory=dict)
    """Of every result in the frame, by cell id, plan and task."""

    def documents(self, cell_id: str, plan: str, task: str) -> dict[str, list[Any]]:
        """The outcome of every document, as columns; empty where it is not to be had."""
        key = self.keys.get((cell_id, plan, task))
        if self.store is None or key is None:
            return {}
        try:
            return self.store.documents(key)
        except ValueError:
            return {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The accuracy tasks, in the order of the read-out: those that Task Avg is the mean of."""
        return tuple(task for task in self.expected["task"].unique() if task != LOG_PPLX)

    @property
    def missing(self) -> pd.DataFrame:
        """The rows of `expected` that have no result."""
        keys = ["cell_id", "plan", "task"]
        measured = set(self.frame[keys].itertuples(index=False, name=None))
        gaps = [key not in measured for key in self.expected[keys].itertuples(index=False, name=None)]
        return self.expected.loc[gaps]


def load_frame(cells: Sequence[Cell], setup: Setup, store: ResultStore) -> LoadedResults:
    """Everything a report on these cells needs to know, read from result files alone."""
    distinct = list({cell.id: cell for cell in cells}.values())
    identities = _identities(distinct, setup.readout)
    tasks = expected_tasks(setup.readout)
    results, unreadable = _read_all(distinct, store)
    wanted = [result for result in results if (result.cell_id, result.plan) in identities and result.task in tasks]
    kept, mixed = _one_protocol_a_task(wanted, setup.readout, {cell.id: cell.model.name for cell in distinct})
    rows = [row for result in kept for row in _rows(result, identities[result.cell_id, result.plan])]
    expected = [{**identity, "task": task} for identity in identities.values() for task in tasks]
    return LoadedResults(
        frame=pd.DataFrame(rows, columns=list(COLUMNS)).astype({"limit": "Int64", "parent_bits": "Int64"}),
        expected=pd.DataFrame(expected, columns=[*IDENTITY_COLUMNS, "task"]).astype({"parent_bits": "Int64"}),
        problems=(*unreadable, *mixed, *_mixed_checkpoints(kept)),
        store=store,
        keys={(result.cell_id, result.plan, result.task): result.key for result in kept},
    )


def expected_tasks(readout: Readout) -> tuple[str, ...]:
    """The tasks of a read-out, with log perplexity last where it is asked for."""
    asks_log_pplx = readout.perplexity is not None or LOG_PPLX in readout.tasks
    return (*(task for task in readout.tasks if task != LOG_PPLX), *([LOG_PPLX] if asks_log_pplx else []))


# --- what a row is called --------------------------------------------------------------------------------------------


def _identities(cells: Sequence[Cell], readout: Readout) -> dict[tuple[str, str], dict[str, Any]]:
    """The IDENTITY_COLUMNS of every (cell id, plan) that the read-out asks for."""
    reads = [(cell, plan) for cell in cells for plan in readout.plans_of(cell)]
    rivals: dict[tuple[str, str, str], list[Cell]] = {}
    for cell, plan in reads:
        rivals.setdefault(_row_name(cell, plan, readout), []).append(cell)
    return {
        (cell.id, plan.label): _identity(cell, plan, readout, rivals[_row_name(cell, plan, readout)])
        for cell, plan in reads
    }


def _row_name(cell: Cell, plan: Plan, readout: Readout) -> tuple[str, str, str]:
    """Model, method with base algorithm, plan: rows that share it need their differing facts spelled out."""
    method = method_name(cell, plan, readout)
    named = f"{method} ({base_name(cell)})" if cell.objective is not None else method
    return cell.model.name, named, plan.label


def _identity(cell: Cell, plan: Plan, readout: Readout, rivals: Sequence[Cell]) -> dict[str, Any]:
    model, named, _ = _row_name(cell, plan, readout)
    objective, part = cell.objective, plan.default
    interpolated = objective is not None and part is not None and objective.is_interpolated(part)
    return {
        "cell_id": cell.id,
        "config_id": _without_seed(cell).id,
        "model": model,
        "base": cell.base.kind,
        "objective": None if objective is None else objective_text(objective),
        "parent_bits": None if objective is None else objective.parent_bits,
        "method": method_name(cell, plan, readout),
        "label": ", ".join([named, *_differing_facts(cell, rivals)]),
        "plan": plan.label,
        "bits": plan.bits,
        "extra_precision": plan.extra_precision,
        "interpolated": interpolated,
        "seed": cell.seed,
    }


def method_name(cell: Cell, plan: Plan, readout: Readout) -> str:
    """The paper's name of the row; a model without quantization is called by the dtype it was evaluated in."""
    if cell.objective is None:
        return readout.dtype
    if plan.layout is not None:
        return f"Mix'n'Match {plan.layout.replace('_', ' ')}"
    if plan.layers is not None:
        return f"Searched {plan.label}"
    assert plan.default is not None
    return cell.objective.method(plan.default)


def base_name(cell: Cell) -> str:
    return BASE_NAMES.get(cell.base.kind, cell.base.kind)


def objective_text(objective: Objective) -> str:
    """`{int8: 0.1, int4: 0.1, int2: 1}`: the loss terms with their weights, as a configuration writes them."""
    return "{" + ", ".join(f"{term}: {term.weight:g}" for term in objective.terms) + "}"


def _without_seed(cell: Cell) -> Cell:
    return cell.model_copy(update={"seed": 0})


def _differing_facts(cell: Cell, rivals: Sequence[Cell]) -> list[str]:
    """The facts, besides the seed, in which a cell differs from others of the same name: `base.num_steps=48`."""
    if len({_without_seed(rival).id for rival in rivals}) < 2:
        return []
    everyone = [dict(_facts(rival)) for rival in rivals]
    differing = [(key, text) for key, text in _facts(cell) if any(facts.get(key) != text for facts in everyone)]
    return [text if key == "objective" else f"{key}={text}" for key, text in differing]


def _facts(cell: Cell) -> Iterator[tuple[str, str]]:
    """Every fact of a cell but its seed, as dotted keys and text."""
    if cell.objective is not None:
        yield "objective", objective_text(cell.objective)
    yield from flatten(cell.model_dump(mode="json", exclude={"objective", "seed"}))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as `("base.num_steps", "48")` pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_all(cells: Iterable[Cell], store: ResultStore) -> tuple[list[Result], list[str]]:
    """Every sound result of the cells, and a sentence for every file that is not one."""
    results, problems = [], []
    for cell in cells:
        for path in sorted((store.folder / cell.id).glob("*/*.json")):
            try:
                results.append(_read_sound(path, store))
            except (OSError, ValueError) as error:
                problems.append(str(error))
    return results, problems


def _read_sound(path: Path, store: ResultStore) -> Result:
    """A result whose content says what its place says; ValueError otherwise."""
    result = store.read(path)
    try:
        in_its_place = store.path(result.key) == path
        whole = all(isinstance(part, Mapping) for part in (result.metrics, result.protocol, result.provenance))
    except TypeError:
        in_its_place = whole = False
    if not (in_its_place and whole):
        raise ValueError(f"{path} does not hold the result its name promises; delete it and evaluate again")
    return result


def _rows(result: Result, identity: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each metric, its standard error beside it."""
    provenance = result.provenance
    measured = {name: value for name, value in result.metrics.items() if isinstance(value, Real)}
    for metric in (name for name in measured if not name.endswith(STDERR)):
        yield {
            **identity,
            "effective_bits": result.effective_bits,
            **{column: result.overhead.get(column) for column in COST_COLUMNS[1:]},
            "task": result.task,
            "metric": metric,
            "value": measured[metric],
            "stderr": measured.get(metric + STDERR),
            "num_documents": result.num_documents,
            **{column: result.protocol.get(column) for column in PROTOCOL_COLUMNS},
            "protocol_id": protocol_id(result.protocol),
            "checkpoint": result.checkpoint,
            "device": provenance.get("device"),
            "seconds": provenance.get("seconds"),
            "commit": _commit_text(provenance),
            "finished": provenance.get("finished", ""),
        }


def _commit_text(provenance: Mapping[str, Any]) -> str:
    """Twelve digits of the commit, with `+edited` where the source had been changed since."""
    return str(provenance.get("commit", "unknown"))[:12] + ("+edited" if provenance.get("dirty") else "")


# --- one protocol a task ---------------------------------------------------------------------------------------------


def _one_protocol_a_task(
    results: Sequence[Result], readout: Readout, models: Mapping[str, str]
) -> tuple[list[Result], list[str]]:
    """For each task of a model the results of one protocol, and a sentence for what was left out or is not as asked.

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
                problems.setdefault(f"left out, because of another protocol: {difference}", []).extend(group)
        if deviation := _deviation(chosen[0], readout):
            problems.setdefault(f"measured with {deviation}, as the read-out asks; evaluate again", []).extend(chosen)
    sentences = [f"{_whose(group)} {problem}" for problem, group in problems.items()]
    for model in dict.fromkeys(models.values()):
        sentences += _mixed_average([result for result in kept if models[result.cell_id] == model])
    return kept, sentences


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
    """How a result's protocol differs from the one the read-out asks for; empty if it does not."""
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
    for name in ("limit", "batch_size", "dtype", "lm_eval"):
        tasks: dict[str, set[str]] = {}
        for result in accuracies:
            tasks.setdefault(_value(result.protocol.get(name)), set()).add(result.task)
        if len(tasks) > 1:
            shown = "; ".join(f"{value} for {', '.join(sorted(of))}" for value, of in tasks.items())
            problems.append(f"Task Avg is over tasks that differ in {name}: {shown}")
    return problems


def _mixed_checkpoints(results: Iterable[Result]) -> list[str]:
    """A sentence for each cell whose results were read from more than one checkpoint."""
    checkpoints: dict[str, set[str | None]] = {}
    for result in results:
        checkpoints.setdefault(result.cell_id, set()).add(result.checkpoint)
    return [
        f"{cell_id}: results come from {len(found)} different checkpoints; evaluate the cell again"
        for cell_id, found in checkpoints.items()
        if len(found) > 1
    ]
