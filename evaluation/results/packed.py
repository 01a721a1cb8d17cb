"""The packed form of a folder of results: two parquet files with everything that its loose files hold.

    facts.parquet       a row for each json file: `path` in the folder, `text`, and of a result its documents' `columns`
    documents.parquet   a row for each document: the `path` of its result, then the columns of all results

A column of documents is named with its type (`acc:uint8`), as a metric may be of one type in one task and of another
type in the next.  A document has nothing in the columns that its result does not name.

Rows are found by `path` and never by their number.  A process that is killed between writing the two files leaves a new
documents.parquet beside an old facts.parquet, which can be read all the same.

pyarrow is imported by the functions that need it: a folder that is not packed is read without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from matquant.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

FACTS = "facts.parquet"
DOCUMENTS = "documents.parquet"
COMPRESSION_LEVEL = 19


class PackedEntry(NamedTuple):
    """One loose json file: its path in the folder, its text, and the documents of a result."""

    path: str
    text: str
    documents: pa.Table | None = None


class Facts:
    """The content of a facts.parquet; texts are unpacked when the first one is asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            # Whole in memory: another file may take its place between two questions.
            self._file = pq.ParquetFile(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
        paths = self._column("path").to_pylist()
        if not all(map(_lies_inside, paths)) or len(set(paths)) < len(paths):
            raise _unreadable(path, ValueError("its paths are not those of a folder of results"))
        self._rows = {name: row for row, name in enumerate(paths)}

    def __contains__(self, path: str) -> bool:
        return path in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    @cached_property
    def names(self) -> Mapping[str, Mapping[str, frozenset[str]]]:
        """The names of files by cell and plan; those of the cell itself under an empty plan."""
        found: dict[str, dict[str, set[str]]] = {}
        for path in map(PurePosixPath, self._rows):
            cell_id, *plan = path.parent.parts
            found.setdefault(cell_id, {}).setdefault("/".join(plan), set()).add(path.name)
        return {cell_id: {plan: frozenset(names) for plan, names in plans.items()} for cell_id, plans in found.items()}

    def text(self, path: str) -> str:
        text = self._texts[self._rows[path]].as_py()
        if not isinstance(text, str):
            raise _unreadable(self.path, ValueError(f"{path} has no text"))
        return text

    def columns(self, path: str) -> list[str] | None:
        """The columns of a result's documents; None for a file that is not a result."""
        return self._columns[self._rows[path]].as_py()

    @cached_property
    def _texts(self) -> pa.ChunkedArray:
        return self._column("text")

    @cached_property
    def _columns(self) -> pa.ChunkedArray:
        return self._column("columns")

    def _column(self, name: str) -> pa.ChunkedArray:
        import pyarrow as pa

        try:
            return self._file.read([name])[name]
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise _unreadable(self.path, error) from error


class DocumentRows:
    """The content of a documents.parquet, with the range of rows of each result."""

    def __init__(self, path: Path) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            # Not pq.read_table: it imports pandas, and looks for partitions first.
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
            places = table["path"].combine_chunks().dictionary_encode()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
        # The rows of a result lie together, so its number in the dictionary is that of its stretch.
        if (np.diff(places.indices.to_numpy()) < 0).any():
            raise _unreadable(path, ValueError("the documents of a result do not lie together"))
        ends = np.bincount(places.indices.to_numpy(), minlength=len(places.dictionary)).cumsum().tolist()
        starts = [0, *ends][: len(ends)]
        self._spans = dict(zip(places.dictionary.to_pylist(), zip(starts, ends, strict=True), strict=True))
        self._table = table.drop_columns(["path"])

    def of(self, path: str, columns: Sequence[str]) -> pa.Table:
        """The documents of a result, under the names of their metrics."""
        start, end = self._spans.get(path, (0, 0))
        try:
            return self._table.slice(start, end - start).select(columns).rename_columns([*map(_metric, columns)])
        except KeyError as error:
            raise _unreadable(self.path, error) from error

    def count(self, path: str) -> int:
        """The number of documents of a result."""
        start, end = self._spans.get(path, (0, 0))
        return end - start


def _unreadable(path: Path, error: Exception) -> UserError:
    """The refusal of a packed file, which must not count as missing: a whole study would be measured again."""
    reason = " ".join(str(error).split())  # pyarrow's are of several lines
    return UserError(f"{path} cannot be read ({reason}); restore it, or delete it and evaluate again")


def _lies_inside(path: str | None) -> bool:
    """True for the path of a file below a folder; False for one that would lead out of it."""
    return path is not None and not path.startswith("/") and not {"", ".", ".."} & set(path.split("/"))


def _metric(column: str) -> str:
    return column.rpartition(":")[0]


# --- reading ---------------------------------------------------------------------------------------------------------


def packed_facts(folder: Path) -> Facts | None:
    """The packed facts of a folder as they are now; None if it has none.  Read once for each state of the file."""
    path = folder / FACTS
    signature = signature_of(path)
    return None if signature is None else _facts(path, signature)


def packed_documents(folder: Path) -> DocumentRows:
    """The packed documents of a folder as they are now."""
    path = folder / DOCUMENTS
    return _documents(path, signature_of(path))


def packed_table(folder: Path, path: str) -> pa.Table:
    """The packed documents of a result."""
    facts = packed_facts(folder)
    columns = None if facts is None or path not in facts else facts.columns(path)
    if columns is None:
        raise ValueError(f"{folder / FACTS} has no result {path}")
    return packed_documents(folder).of(path, columns)


Signature = tuple[int, int, int]


def signature_of(path: Path) -> Signature | None:
    """Facts that change when a file is replaced; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)
def _facts(path: Path, _: Signature) -> Facts:
    return Facts(path)


@lru_cache(maxsize=2)
def _documents(path: Path, _: Signature | None) -> DocumentRows:
    return DocumentRows(path)


# --- writing ---------------------------------------------------------------------------------------------------------


def columns_of(documents: pa.Table) -> list[str]:
    """The names of a result's columns in documents.parquet."""
    return [f"{field.name}:{field.type}" for field in documents.schema]


def write_facts(entries: Iterable[PackedEntry], path: Path) -> None:
    """Writes a facts.parquet; the same entries give the same bytes."""
    import pyarrow as pa

    schema = pa.schema({"path": pa.string(), "text": pa.string(), "columns": pa.list_(pa.string())})
    rows = [
        {
            "path": entry.path,
            "text": entry.text,
            "columns": None if entry.documents is None else columns_of(entry.documents),
        }
        for entry in entries
    ]
    _write(pa.Table.from_pylist(rows, schema=schema), path)


def write_documents(entries: Iterable[PackedEntry], path: Path) -> None:
    """Writes a documents.parquet; the same entries give the same bytes."""
    import pyarrow as pa

    tables = [pa.table({"path": pa.array([], pa.string())})]
    for entry in entries:
        if entry.documents is not None:
            place = pa.array([entry.path] * len(entry.documents), pa.string())
            table = entry.documents.replace_schema_metadata().rename_columns(columns_of(entry.documents))
            tables.append(table.append_column("path", place))
    # In one piece: pages end where pieces do, and the same documents shall give the same bytes.
    together = pa.concat_tables(tables, promote_options="default").combine_chunks()
    _write(together.select(["path", *sorted(name for name in together.column_names if name != "path")]), path)


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    # With checksums: most single bits that turn over would be read as other numbers.
    pq.write_table(table, path, compression="zstd", compression_level=COMPRESSION_LEVEL, write_page_checksum=True)
