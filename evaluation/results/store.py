"""Results on disk: one file per (cell, plan, task, protocol), written beside and renamed.

    results/<cell id>/cell.json       the cell's specification
    results/<cell id>/codes.json      histogram of its codes, effective bits of every layer
    results/<cell id>/training.json   seconds that its checkpoint took to make
    results/<cell id>/<plan>.plan.json   the widths that a search has found for a plan
    results/<cell id>/<plan>/<task>-<protocol id>.json        metrics, and how they were measured
    results/<cell id>/<plan>/<task>-<protocol id>.parquet     a row for each document
    results/{facts,documents}.parquet     the packed form of all of them (`evaluation.results.packed`)

These files are read loose or packed; a loose one wins over a packed one of the same name.  New files are always loose.

The *protocol* is every fact that decides what a number means besides the weights: task, document limit, batch size,
dtype, data revision, lm-eval version.  A result measured under another protocol is another file, so nothing is ever
overwritten by a different experiment and nothing is mistaken for it.

pyarrow is imported by the functions that open a table of documents: planning, by the names of files, does without.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.results.packed import DOCUMENTS, FACTS, packed_documents, packed_facts, packed_table
from evaluation.results.soundness import fault_of
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.files import write_beside, write_json
from matquant.runs.folder import removal

if TYPE_CHECKING:
    import pyarrow as pa

Protocol = Mapping[str, Any]

BLOCK_SHARE = "block_share"
"""In the overhead of a cell that quantizes a part of its scope: the share of the scope's weights that it is."""


def protocol_id(protocol: Protocol) -> str:
    """Eight hex digits that stand for an evaluation protocol in a file name."""
    return hashlib.sha256(json.dumps(dict(protocol), sort_keys=True).encode()).hexdigest()[:8]


Documents = Mapping[str, Sequence[Any]]
"""The measurements of each document, as columns: `doc_id`, and every metric that is one number a document.

With them any two read-outs can be compared on the same documents.
"""


def documents_path(result: Path) -> Path:
    """The path of the documents of a result, beside it."""
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
    """The identity of a result: equal keys mean the same measurement."""

    cell_id: str
    plan: str
    task: str
    protocol: Protocol


@dataclass(frozen=True)
class Result:
    """One task of one read-out of one cell, with every fact needed to measure it again.

    `metrics` holds fractions (acc, acc_norm) or nats per token (log_pplx), each with its `_stderr`.  `effective_bits`
    is the paper's count; `overhead` is what that leaves out (`matquant.codes.extra_precision.overhead_bits`).
    `sources` are the fingerprints of the weights and the text (`matquant.runs.sources`); older results have none.
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
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return Key(self.cell_id, self.plan, self.task, self.protocol)


def write_documents(path: Path, documents: pa.Table) -> None:
    """Writes the documents of a result, beside it."""
    import pyarrow.parquet as pq

    write_beside(documents_path(path), lambda beside: pq.write_table(documents, beside, compression="zstd"))


def read_documents(path: Path) -> pa.Table:
    """The loose documents of a result; ValueError if they are not there or cut short."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = documents_path(path)
    try:
        # Not pq.read_table: it imports pandas, and looks for partitions first.
        with pq.ParquetFile(documents) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(documents, error) from error


def _unreadable(documents: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())  # pyarrow's are of several lines
    return ValueError(f"{documents} cannot be read ({reason}); delete the json beside it and evaluate again")


class ResultStore:
    """A folder of results, loose or packed.  Reading never trusts a file that does not say what it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if self.folder.is_file():
            raise UserError(f"{folder} is a file; name a folder of results")

    def path(self, key: Key) -> Path:
        """The path of a result while it is loose."""
        return self.folder / key.cell_id / key.plan / f"{key.task}-{protocol_id(key.protocol)}.json"

    # --- what there is ---

    def names(self, cell_id: str, plan: str) -> frozenset[str]:
        """The names of the result files of one read-out, without empty files: results are renamed into place whole."""
        loose: dict[str, int] = {}
        try:
            with os.scandir(self.folder / cell_id / plan) as entries:
                loose = {entry.name: entry.stat().st_size for entry in entries}
        except OSError:
            pass
        packed = self._packed_names(cell_id).get(plan, frozenset())
        return frozenset(name for name in packed.union(loose) if loose.get(name, 1))

    def paths(self, cell_id: str) -> list[Path]:
        """The result files of a cell, in order; a packed one has the place that it would have loose."""
        folder = self.folder / cell_id
        packed = self._packed_names(cell_id).items()
        return sorted(
            {*folder.glob("*/*.json"), *(folder / plan / name for plan, names in packed if plan for name in names)}
        )

    def readouts(self) -> list[str]:
        """Every read-out that has results, as CELL:PLAN."""
        loose = {f"{path.parent.name}:{path.name}" for path in self.folder.glob("*/*") if path.is_dir()}
        facts = packed_facts(self.folder)
        packed = {} if facts is None else facts.names
        return sorted(loose | {f"{cell_id}:{plan}" for cell_id, plans in packed.items() for plan in plans if plan})

    def files(self, cell_id: str) -> list[Path]:
        """Every file on disk that says something about a cell: its loose files, and the packed ones of all cells."""
        patterns = ("*.json", "*.jsonl", "*/*.json", "*/*.parquet")
        loose = sorted(path for pattern in patterns for path in (self.folder / cell_id).glob(pattern))
        return [*loose, *(path for path in (self.folder / FACTS, self.folder / DOCUMENTS) if path.exists())]

    def has(self, key: Key) -> bool:
        """True if a whole result of exactly this key is on disk; a file cut short counts as missing."""
        path = self.path(key)
        try:
            result = self.read(path)
            return result.key == key and self.num_documents(path) == result.num_documents
        except UserError:
            raise
        except (OSError, ValueError):
            return False

    # --- writing ---

    def put(self, result: Result, documents: Documents) -> None:
        """Writes a result and its documents; it counts as there once the json is, which comes last."""
        import pyarrow as pa

        path = self.path(result.key)
        write_documents(path, pa.table({name: _compact(values) for name, values in documents.items()}))
        write_json(path, asdict(result))

    def put_cell(self, cell_id: str, cell: Mapping[str, Any]) -> None:
        """Records the specification of a cell, once: tables are drawn without its checkpoint."""
        path = self.folder / cell_id / "cell.json"
        if not (path.exists() or self._is_packed(path)):
            write_json(path, cell)

    def put_codes(self, cell_id: str, statistics: Mapping[str, Any]) -> None:
        """Records the statistics of a checkpoint's codes, unless the same are recorded already."""
        self._put(self.folder / cell_id / "codes.json", statistics)

    def put_training(self, cell_id: str, facts: Mapping[str, Any]) -> None:
        """Records the seconds that a checkpoint took to make."""
        self._put(self.folder / cell_id / "training.json", facts)

    def training_seconds(self, cell_id: str) -> float | None:
        """The seconds that a cell's checkpoint took to make; None if that is not recorded."""
        try:
            return float(json.loads(self.text(cell_id, "training.json"))["seconds"])
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put_plan(self, cell_id: str, plan: str, facts: Mapping[str, Any]) -> None:
        """Records the widths that a search has found, and the settings of the search."""
        self._put(self.folder / cell_id / f"{plan}.plan.json", facts)

    def _put(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Writes facts unless they are there already, so that a file's age says when they changed."""
        try:
            recorded = json.loads(self._text(path))
        except UserError:
            raise
        except (OSError, ValueError):
            recorded = None
        if recorded != facts:
            write_json(path, facts)

    # --- reading ---

    def plan(self, cell_id: str, plan: Plan) -> Plan:
        """A plan with the widths that its search has found, if it has one and that is recorded."""
        if plan.strategy is None:
            return plan
        try:
            text = self.text(cell_id, f"{plan}.plan.json")
        except FileNotFoundError:
            return plan
        return plan.found(json.loads(text)["layers"])

    def text(self, cell_id: str, name: str) -> str:
        """The text of a file of a cell, such as codes.json; FileNotFoundError if there is none."""
        return self._text(self.folder / cell_id / name)

    def read(self, path: Path) -> Result:
        """The result in a file; ValueError if the file is not a whole result, or has a value that no result has."""
        try:
            result = Result(**json.loads(self._text(path)))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a whole result file ({error}); {self.remedy(path)}") from error
        if (fault := fault_of(result)) is not None:
            raise ValueError(f"{path} is no sound result: {fault}; {self.remedy(path)}")
        return result

    def remedy(self, path: Path) -> str:
        """The words that say how to replace a result that is not to be trusted."""
        if self._is_packed(path):
            return f"it is packed in {self.folder / FACTS}: `matquant run` measures it again, and that result counts"
        return "delete it and evaluate again"

    def documents(self, key: Key) -> dict[str, list[Any]]:
        """The outcome of every document of a result; ValueError if they are not there or cut short."""
        path = self.path(key)
        if not self._is_packed(path):
            return read_documents(path).to_pydict()
        return packed_table(self.folder, self._name(path)).to_pydict()

    def results(self, cell_id: str) -> Iterator[Result]:
        """Every result of a cell."""
        for path in self.paths(cell_id):
            yield self.read(path)

    def checkpoints(self, cell_id: str) -> set[str]:
        """The checksums of the codes that a cell's results were read from; files that are no results are passed."""
        found = set[str]()
        for path in self.paths(cell_id):
            with suppress(OSError, ValueError):  # a damaged one is measured again
                found.add(self.read(path).checkpoint or "")
        return found - {""}

    def sources(self, cell_id: str) -> list[Mapping[str, str]]:
        """The sources of every result of a cell; an older result has none, and files that are no results are passed."""
        found = []
        for path in self.paths(cell_id):
            with suppress(OSError, ValueError):  # a damaged one is measured again
                found.append(self.read(path).sources)
        return found

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            facts = packed_facts(self.folder)
            if facts is None or self._name(path) not in facts:
                raise
            return facts.text(self._name(path))

    def removal(self, cell_id: str) -> str:
        """The command that removes a cell's results, packed ones too."""
        return removal([self.folder / cell_id], self.folder if self.has_packed(cell_id) else None)

    def has_packed(self, cell_id: str) -> bool:
        """True if some files of a cell are packed."""
        return bool(self._packed_names(cell_id))

    def num_documents(self, path: Path) -> int:
        """The number of documents of a result, without reading them; ValueError if they cannot be read."""
        if self._is_packed(path):
            return packed_documents(self.folder).count(self._name(path))
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_metadata(documents_path(path)).num_rows
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(documents_path(path), error) from error

    def _is_packed(self, path: Path) -> bool:
        """True if a file is packed and not loose."""
        facts = packed_facts(self.folder)
        return facts is not None and self._name(path) in facts and not path.exists()

    def _packed_names(self, cell_id: str) -> Mapping[str, frozenset[str]]:
        facts = packed_facts(self.folder)
        return {} if facts is None else facts.names.get(cell_id, {})

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
