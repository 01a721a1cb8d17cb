"""Results on disk and the cells that should have them, as one tidy table: a row per (cell, plan, task, metric).

Three promises hold for everything drawn from it.  Results that the read-out asks for and nobody has measured are in
`missing`; a file that cannot be trusted is left out and named in `problems`; and every row was measured under the
protocol that the read-out asks for (`analysis.frame.protocols`), what else there is being named in `others`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.frame.measures import diverging, unquantized_of, with_sound_teachers
from analysis.frame.names import IDENTITY_COLUMNS, Read, identities, reads_of
from analysis.frame.protocols import asked_for, directions, mixed_checkpoints, repeated_tasks, shown_tasks
from analysis.frame.sources import mixed_sources
from evaluation.results.metrics import (
    LOG_PPLX,
    TASK_AVG,
    Directions,
    error_name,
    headline_metric,
    higher_is_better,
    is_error,
    is_fraction,
)
from evaluation.results.store import BLOCK_SHARE, Result, ResultStore, protocol_id
from evaluation.results.stored_bits import charges_float32, recounted
from matquant.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from evaluation.results.store import Key
    from matquant.config.cell import Cell
    from matquant.config.setup import Readout, Setup

PROTOCOL_COLUMNS = ("limit", "batch_size", "dtype", "data", "lm_eval")
COST_COLUMNS = ("effective_bits", "grid_bits", "overflow_bits", "model_bits", BLOCK_SHARE)
"""The paper's count of bits, and the bits that it leaves out (`matquant.codes.extra_precision.overhead_bits`).

The share of a scope's weights that is quantized comes with them; NaN where it is all of them.
"""
COLUMNS = (
    *IDENTITY_COLUMNS,
    *COST_COLUMNS,
    *("task", "metric", "is_headline", "value", "stderr", "num_documents"),
    *PROTOCOL_COLUMNS,
    *("protocol_id", "checkpoint", "model_content", "device", "seconds", "commit", "versions", "finished"),
)


@dataclass(frozen=True)
class LoadedResults:
    """The measured results, the expected ones, and the problems.

    `frame` has COLUMNS: accuracies as fractions, log perplexity in nats per token, seconds of wall clock.  `expected`
    has IDENTITY_COLUMNS and `task`, a row for each (cell, plan, task) of the read-out, in the order it lists them.
    """

    frame: pd.DataFrame
    expected: pd.DataFrame
    problems: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Sentences about results that were measured under another protocol, and are not in the frame."""
    store: ResultStore | None = None
    keys: Mapping[tuple[str, str, str], Key] = field(default_factory=dict)
    """The key of every result in the frame, by cell id, plan and task."""
    by_older_count: frozenset[tuple[str, str]] = frozenset()
    """The read-outs, by cell id and plan, whose stored bits cannot be counted anew: their codes are not recorded."""

    unquantized: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """The cell of the unquantized model, measured alike on the same weights, by cell id and task."""
    diverging: frozenset[tuple[str, str]] = frozenset()
    """The read-outs, by cell id and plan, whose divergence from the unquantized model was measured."""
    directions: Mapping[str, Directions] = field(default_factory=dict)
    """What the yaml of each task says about its metrics: True where more is better."""
    repeated: frozenset[str] = frozenset()
    """The tasks whose documents a group beside them has: Task Avg counts these once."""

    def documents(self, cell_id: str, plan: str, task: str) -> dict[str, list[Any]]:
        """The outcome of every document, as columns; empty if it is not stored."""
        key = self.keys.get((cell_id, plan, task))
        if self.store is None or key is None:
            return {}
        try:
            return self.store.documents(key)
        except UserError:  # the packed documents of the whole study
            raise
        except ValueError:
            return {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks besides log perplexity, in the order of the read-out."""
        return tuple(task for task in self.expected["task"].unique() if not task.startswith(LOG_PPLX))

    @cached_property
    def metrics(self) -> Mapping[str, str]:
        """The headline metric of every task that has been measured."""
        found = self.frame[self.frame["is_headline"].astype(bool)]
        return dict(zip(found["task"], found["metric"], strict=True))

    def higher_is_better(self, task: str, metric: str) -> bool:
        """True for a metric of a task of which more is better, by the yaml of the task before the metric's name."""
        return higher_is_better(metric, self.directions.get(task))

    @property
    def averaged(self) -> tuple[str, ...]:
        """The tasks that Task Avg is the mean of: those whose metric is a share of right answers, or not known yet."""
        counted = ((task, self.metrics.get(task, TASK_AVG)) for task in self.tasks if task not in self.repeated)
        return tuple(task for task, metric in counted if is_fraction(metric) and self.higher_is_better(task, metric))

    @property
    def missing(self) -> pd.DataFrame:
        """The rows of `expected` that have no result."""
        keys = ["cell_id", "plan", "task"]
        measured = set(self.frame[keys].itertuples(index=False, name=None))
        gaps = [key not in measured for key in self.expected[keys].itertuples(index=False, name=None)]
        return self.expected.loc[gaps]


def load_frame(cells: Sequence[Cell], setup: Setup, store: ResultStore) -> LoadedResults:
    """Everything that a report on these cells needs, read from result files alone."""
    distinct = list({cell.id: cell for cell in cells}.values())
    results, unreadable = read_all(distinct, store)
    return frame_of(results, distinct, setup.readout, store, unreadable)


def frame_of(
    results: Iterable[Result],
    cells: Sequence[Cell],
    readout: Readout,
    store: ResultStore | None = None,
    problems: Sequence[str] = (),
) -> LoadedResults:
    """The results that a read-out of these cells asks for."""
    reads, tasks = reads_of(cells, readout), expected_tasks(readout)
    places = {(cell.id, plan.label) for cell, plan in reads}
    wanted = [result for result in results if (result.cell_id, result.plan) in places and result.task in tasks]
    asked = asked_for(wanted, readout, {cell.id: cell for cell in cells})
    problems = (*problems, *asked.problems)
    return frame_of_reads(asked.results, reads, readout, store, problems, asked.others)


def frame_of_reads(
    results: Sequence[Result],
    reads: Sequence[Read],
    readout: Readout,
    store: ResultStore | None = None,
    problems: Sequence[str] = (),
    others: Sequence[str] = (),
) -> LoadedResults:
    """The results of these reads, which were measured alike, for the tasks of a read-out."""
    named, tasks = identities(reads, readout), expected_tasks(readout)
    cells = list({cell.id: cell for cell, _ in reads}.values())
    sound, doubts = with_sound_teachers(results, cells)
    kept, by_older_count = _counted_alike(sound, reads, store)
    rows = [row for result in kept for row in _rows(result, named[result.cell_id, result.plan])]
    expected = [{**identity, "task": task} for identity in named.values() for task in tasks]
    return LoadedResults(
        frame=pd.DataFrame(rows, columns=list(COLUMNS)).astype({"limit": "Int64", "parent_bits": "Int64"}),
        expected=pd.DataFrame(expected, columns=[*IDENTITY_COLUMNS, "task"]).astype({"parent_bits": "Int64"}),
        problems=(*problems, *doubts, *mixed_checkpoints(kept, store), *mixed_sources(kept, cells)),
        others=tuple(others),
        store=store,
        keys={(result.cell_id, result.plan, result.task): result.key for result in kept},
        by_older_count=by_older_count,
        unquantized=unquantized_of(kept, cells),
        diverging=diverging(kept),
        directions=directions(readout),
        repeated=repeated_tasks(readout),
    )


def _counted_alike(
    results: Sequence[Result], reads: Sequence[Read], store: ResultStore | None
) -> tuple[list[Result], frozenset[tuple[str, str]]]:
    """The results with their stored bits by one count, and the read-outs of which that cannot be said."""
    if store is None:
        return list(results), frozenset()
    plans = {(cell.id, plan.label): plan for cell, plan in reads if cell.objective}
    cells = {cell.id: cell for cell, _ in reads}
    counted, older = [], set()
    for result in results:
        plan = plans.get((result.cell_id, result.plan))
        found = result if plan is None else recounted(result, plan, store)
        if charges_float32(result, cells[result.cell_id]):
            found = None
        if found is None:
            older.add((result.cell_id, result.plan))
        counted.append(found or result)
    return counted, frozenset(older)


def expected_tasks(readout: Readout) -> tuple[str, ...]:
    """The tasks of a read-out, a group in place of its tasks, with log perplexity last where it is asked for."""
    asks_log_pplx = readout.perplexity is not None or LOG_PPLX in readout.tasks
    return (*shown_tasks(readout), *([LOG_PPLX] if asks_log_pplx else []))


# --- reading ---------------------------------------------------------------------------------------------------------


def read_all(cells: Iterable[Cell], store: ResultStore) -> tuple[list[Result], list[str]]:
    """Every sound result of the cells, and a sentence for every file that is not one."""
    results, problems = [], []
    for cell in cells:
        for path in store.paths(cell.id):
            try:
                results.append(_read_sound(path, store))
            except UserError:  # the packed documents of the whole study
                raise
            except (OSError, ValueError) as error:
                problems.append(str(error))
    return results, problems


def _read_sound(path: Path, store: ResultStore) -> Result:
    """A result whose content says what its place says, with as many documents as it counts; ValueError otherwise."""
    result = store.read(path)
    if store.path(result.key) != path:
        raise ValueError(f"{path} does not hold the result its name promises; {store.remedy(path)}")
    if headline_metric(result.metrics) is None:
        raise ValueError(f"{path} has no metric; leave {result.task} out of readout.tasks")
    if (stored := store.num_documents(path)) != result.num_documents:
        counts = f"{path} counts {result.num_documents} documents, and {stored} are stored"
        raise ValueError(f"{counts}; {store.remedy(path)}")
    return result


def _rows(result: Result, identity: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each metric, its standard error beside it."""
    provenance = result.provenance
    measured = result.metrics
    shared = {
        **identity,
        "effective_bits": result.effective_bits,
        **{column: result.overhead.get(column) for column in COST_COLUMNS[1:]},
        "task": result.task,
        "num_documents": result.num_documents,
        **{column: result.protocol.get(column) for column in PROTOCOL_COLUMNS},
        "protocol_id": protocol_id(result.protocol),
        "checkpoint": result.checkpoint,
        "model_content": result.sources.get("model"),
        "device": provenance.get("device"),
        "seconds": provenance.get("seconds"),
        "commit": _commit_text(provenance),
        "versions": _versions_text(provenance),
        "finished": str(provenance.get("finished", "")),
    }
    headline = headline_metric(measured)
    for metric in (name for name in measured if not is_error(name)):
        numbers = {"value": measured[metric], "stderr": measured.get(error_name(metric))}
        yield {**shared, "metric": metric, "is_headline": metric == headline, **numbers}


def _commit_text(provenance: Mapping[str, Any]) -> str:
    """Twelve digits of the commit, with `+edited` where the source had been changed since."""
    return str(provenance.get("commit", "unknown"))[:12] + ("+edited" if provenance.get("dirty") else "")


def _versions_text(provenance: Mapping[str, Any]) -> str:
    """`python 3.11.7, torch 2.13.0`: the versions that a number was measured with."""
    versions = provenance.get("versions")
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, Mapping) else ""
