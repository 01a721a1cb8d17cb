"""Results on disk: one file per (cell, plan, task, protocol), written beside and renamed.

    results/<cell id>/cell.json       what the cell is
    results/<cell id>/codes.json      histogram of its codes, effective bits of every layer
    results/<cell id>/<plan>.plan.json   the widths that a search has found for a plan
    results/<cell id>/<plan>/<task>-<protocol id>.json        metrics, and how they were measured
    results/<cell id>/<plan>/<task>-<protocol id>.parquet     a row for each document

The *protocol* is every fact that decides what a number means besides the weights: task, document limit, batch size,
dtype, data revision, lm-eval version.  A result measured under another protocol is another file, so nothing is ever
overwritten by a different experiment and nothing is mistaken for it.

pyarrow is imported by the functions that open a table of documents: what plans by the names of files needs none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matquant.notation import Plan
from matquant.runs.files import write_beside, write_json

if TYPE_CHECKING:
    import pyarrow as pa

Protocol = Mapping[str, Any]

LOG_PPLX = "log_pplx"  # the pseudo task of log perplexity, beside the accuracy tasks
HEADLINE_METRICS = (LOG_PPLX, "acc_norm", "acc")
"""Which metric stands for a task: the first of these that lm-eval defines for it."""


def headline_metric(metrics: Iterable[str]) -> str | None:
    """The metric that stands for a task: without a usual one the first it has, or none if it has none."""
    names = list(metrics)
    return next((name for name in HEADLINE_METRICS if name in names), names[0] if names else None)


def protocol_id(protocol: Protocol) -> str:
    """Eight hex digits that stand for an evaluation protocol in a file name."""
    return hashlib.sha256(json.dumps(dict(protocol), sort_keys=True).encode()).hexdigest()[:8]


Documents = Mapping[str, Sequence[Any]]
"""What was measured on each document, as columns: `doc_id`, and every metric that is one number a document.

With them any two read-outs can be compared on the same documents.
"""


def documents_path(result: Path) -> Path:
    """Where the documents of a result lie, beside it."""
    return result.with_suffix(".parquet")


def _compact(values: Sequence[Any]) -> pa.Array:
    """Right and wrong in a byte, document numbers in four, other numbers as they are."""
    import pyarrow as pa

    array = pa.array(values)
    if not pa.types.is_integer(array.type):
        return array
    small = all(value is None or value in (0, 1) for value in values)
    return array.cast(pa.uint8() if small else pa.int32())


@dataclass(frozen=True)
class Key:
    """What a result is a result of."""

    cell_id: str
    plan: str
    task: str
    protocol: Protocol


@dataclass(frozen=True)
class Result:
    """One task of one read-out of one cell, with every fact needed to measure it again.

    `metrics` holds fractions (acc, acc_norm) or nats per token (log_pplx), each with its `_stderr`.  `effective_bits`
    is the paper's count; `overhead` is what that leaves out (`matquant.codes.extra_precision.overhead_bits`).
    """

    cell_id: str
    plan: str
    task: str
    protocol: Protocol
    metrics: Mapping[str, float]
    num_documents: int
    effective_bits: float
    overhead: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return Key(self.cell_id, self.plan, self.task, self.protocol)


def _put(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes facts unless they are there already, so that a file's age says when they changed."""
    try:
        recorded = json.loads(path.read_text())
    except (OSError, ValueError):
        recorded = None
    if recorded != facts:
        write_json(path, facts)


class ResultStore:
    """A folder of results.  Reading never trusts a file that does not say what it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path(self, key: Key) -> Path:
        return self.folder / key.cell_id / key.plan / f"{key.task}-{protocol_id(key.protocol)}.json"

    def names(self, cell_id: str, plan: str) -> frozenset[str]:
        """The names of the result files of one read-out: renamed into place whole, so never empty ones."""
        try:
            with os.scandir(self.folder / cell_id / plan) as entries:
                return frozenset(entry.name for entry in entries if entry.stat().st_size)
        except OSError:
            return frozenset()

    def has(self, key: Key) -> bool:
        """True if a whole result of exactly this key is on disk; a file cut short counts as missing."""
        path = self.path(key)
        try:
            result = self.read(path)
        except (OSError, ValueError):
            return False
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            num_rows = pq.read_metadata(documents_path(path)).num_rows
        except (OSError, ValueError, pa.ArrowException):
            return False
        return result.key == key and num_rows == result.num_documents

    def put(self, result: Result, documents: Documents) -> None:
        """Writes a result and its documents; it counts as there once the json is, which comes last."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(result.key)
        table = pa.table({name: _compact(values) for name, values in documents.items()})
        write_beside(documents_path(path), lambda beside: pq.write_table(table, beside, compression="zstd"))
        write_json(path, asdict(result))

    def put_cell(self, cell_id: str, cell: Mapping[str, Any]) -> None:
        """Records what a cell is, once: tables are drawn without its checkpoint."""
        path = self.folder / cell_id / "cell.json"
        if not path.exists():
            write_json(path, cell)

    def put_codes(self, cell_id: str, statistics: Mapping[str, Any]) -> None:
        """Records what the codes of a cell's checkpoint look like, unless that is what is recorded already."""
        _put(self.folder / cell_id / "codes.json", statistics)

    def put_plan(self, cell_id: str, plan: str, facts: Mapping[str, Any]) -> None:
        """Records the widths that a search has found, and what it was told."""
        _put(self.folder / cell_id / f"{plan}.plan.json", facts)

    def plan(self, cell_id: str, plan: Plan) -> Plan:
        """A plan with the widths that its search has found, if it has one and that is recorded."""
        path = self.folder / cell_id / f"{plan}.plan.json"
        if plan.strategy is None or not path.exists():
            return plan
        return plan.found(json.loads(path.read_text())["layers"])

    def read(self, path: Path) -> Result:
        """One result file; ValueError if it is not one."""
        try:
            return Result(**json.loads(path.read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a whole result file ({error}); delete it and evaluate again") from error

    def documents(self, key: Key) -> dict[str, list[Any]]:
        """The outcome of every document of a result; ValueError if they are not there or cut short."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = documents_path(self.path(key))
        try:
            # Not pq.read_table: it imports pandas, and looks for partitions first.
            with pq.ParquetFile(path) as file:
                return file.read().to_pydict()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); delete the json beside it and evaluate again"
            ) from error

    def results(self, cell_id: str) -> Iterator[Result]:
        """Every result of a cell."""
        for path in sorted((self.folder / cell_id).glob("*/*.json")):
            yield self.read(path)
