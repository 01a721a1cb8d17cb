"""Packs a folder of results into two parquet files, which every command reads as it reads the loose files.

A folder that is packed already is merged with its new loose files.  A file that is damaged or not understood is named
and stays loose.  Nothing is removed before it has been read back from the packed files and is the same to the bit, so
an interruption loses nothing: the same command goes on.  Do not pack a folder that is being measured into.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from evaluation.results.packed import (
    DOCUMENTS,
    FACTS,
    DocumentRows,
    Facts,
    PackedEntry,
    Signature,
    columns_of,
    packed_facts,
    packed_table,
    signature_of,
    write_documents,
    write_facts,
)
from evaluation.results.store import ResultStore, documents_path, read_documents
from evaluation.results.store import write_documents as write_loose_documents
from matquant.command.parsing import parse
from matquant.errors import UserError
from matquant.runs.files import remove_leftovers, require_writable, write_beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

OF_A_CELL = ("cell.json", "codes.json", "training.json", "train.jsonl", "*.plan.json")


@dataclass(frozen=True)
class Outcome:
    """The number of packed files that are results, the number of others, and a sentence for each that stays loose."""

    num_results: int
    num_others: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """The loose files of a folder: those that can be packed, and a sentence for each of the others.

    By `stamps` a file that was read is told from one that has been written since.
    """

    entries: Mapping[str, PackedEntry]
    stamps: Mapping[Path, Signature | None]
    problems: tuple[str, ...]


def pack(folder: Path) -> Outcome:
    """Packs every sound file of a folder and removes it; a loose file replaces its packed twin."""
    _require_folder(folder)
    remove_leftovers(folder)
    store = ResultStore(folder)
    found = _loose(store)
    together = {**_packed(store), **found.entries}
    entries = [together[path] for path in sorted(together)]
    num_results = sum(entry.documents is not None for entry in entries)
    if not num_results:
        raise UserError(
            f"{folder} has no results; name the paths.results of a launch, which has <cell id>/<plan>/*.json"
        )
    if found.entries:
        # Documents first: they are found by their result's name, so the old facts can be read beside them.
        write_beside(folder / DOCUMENTS, lambda beside: _write_documents(entries, beside))
        write_beside(folder / FACTS, lambda beside: _write_facts(entries, beside))
    _remove(store, found)
    left = _remove_left_documents(store, together)
    return Outcome(num_results, len(entries) - num_results, (*found.problems, *left))


def unpack(folder: Path) -> Outcome:
    """Writes every packed file loose and removes the packed ones; a loose file that is there already stays as it is.

    The packed files stay while a loose twin is damaged.
    """
    _require_folder(folder)
    remove_leftovers(folder)
    store = ResultStore(folder)
    facts = packed_facts(folder)
    if facts is None:
        raise UserError(f"{folder} is not packed; it has no {FACTS}")
    num_results, problems = 0, []
    for name in tqdm(list(facts), desc="unpacking", unit=" files", delay=1, disable=None):
        path = folder / name
        num_results += facts.columns(name) is not None
        if not path.exists():
            _write_loose(PackedEntry(name, facts.text(name), _packed_documents(store, facts, name)), store)
            continue
        try:
            _entry(path, store)
        except ValueError as error:
            problems.append(f"{error}; a whole one is packed: delete this one and unpack again")
    if not problems:
        (folder / FACTS).unlink()
        (folder / DOCUMENTS).unlink(missing_ok=True)
    return Outcome(num_results, len(list(facts)) - num_results, tuple(problems))


# --- reading ---------------------------------------------------------------------------------------------------------


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder of results, such as results")
    require_writable(folder, "DIR")


def _packed(store: ResultStore) -> dict[str, PackedEntry]:
    """Everything that is packed already."""
    facts = packed_facts(store.folder)
    if facts is None:
        return {}
    return {name: PackedEntry(name, facts.text(name), _packed_documents(store, facts, name)) for name in facts}


def _packed_documents(store: ResultStore, facts: Facts, name: str) -> pa.Table | None:
    if facts.columns(name) is None:
        return None
    documents = packed_table(store.folder, name)
    if len(documents) != (said := json.loads(facts.text(name))["num_documents"]):
        counts = f"{name} has {len(documents)} documents, not {said}"
        raise UserError(f"{store.folder / DOCUMENTS} and {FACTS} are not of one packing ({counts}); restore both")
    return documents


def _loose(store: ResultStore) -> Found:
    """Reads every loose file once."""
    paths = [
        path
        for pattern in ("*/*", "*/*/*")
        for path in sorted(store.folder.glob(pattern))
        if path.is_file() and not path.name.startswith(".")
    ]
    stamps = {path: signature_of(path) for path in paths}
    entries, problems = {}, []
    for path in tqdm(paths, desc="reading", unit=" files", delay=1, disable=None):
        if _holds_documents(path, store):
            continue  # read with the result that they lie beside
        try:
            entry = _entry(path, store)
            entries[entry.path] = entry
        except ValueError as error:
            problems.append(str(error))
    return Found(entries, stamps, tuple(problems))


def _holds_documents(path: Path, store: ResultStore) -> bool:
    return path.suffix == ".parquet" and len(path.relative_to(store.folder).parts) == 3


def _entry(path: Path, store: ResultStore) -> PackedEntry:
    """A loose file as it is packed; ValueError with the reason if it is damaged or not understood."""
    name = path.relative_to(store.folder)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text ({error})") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    if len(name.parts) == 3 and name.suffix == ".json":
        return PackedEntry(name.as_posix(), text, _documents(path, store))
    if len(name.parts) != 2 or not any(name.match(pattern) for pattern in OF_A_CELL):
        raise ValueError(f"{path} is no file of results")
    try:
        for part in text.removesuffix("\n").split("\n") if name.suffix == ".jsonl" else [text]:
            json.loads(part)
    except ValueError as error:
        raise ValueError(f"{path} is cut short ({error})") from error
    return PackedEntry(name.as_posix(), text)


def _documents(path: Path, store: ResultStore) -> pa.Table:
    """The documents of a loose result that is whole; ValueError otherwise."""
    import pyarrow as pa

    result = store.read(path)
    try:
        in_place = store.path(result.key) == path
    except (TypeError, AttributeError, ValueError):
        in_place = False
    if not in_place:
        raise ValueError(f"{path} does not hold the result its name promises; delete it and evaluate again")
    documents = read_documents(path)
    if len(documents) != result.num_documents:
        raise ValueError(f"{documents_path(path)} has {len(documents)} documents, not {result.num_documents}")
    kinds = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
    for column in documents.schema:
        if not any(is_kind(column.type) for is_kind in kinds):
            raise ValueError(f"{documents_path(path)} has a column {column.name} of type {column.type}")
    if len(set(documents.column_names)) < len(documents.column_names):
        raise ValueError(f"{documents_path(path)} has two columns of one name")
    return documents


# --- writing and comparing -------------------------------------------------------------------------------------------


def _write_documents(entries: Sequence[PackedEntry], beside: Path) -> None:
    """Writes the packed documents and refuses them unless they are read back the same."""
    write_documents(entries, beside)
    _flush(beside)
    rows = DocumentRows(beside)
    for path, _, documents in tqdm(entries, desc="comparing", unit=" files", delay=1, disable=None):
        if documents is not None and not same_bits(rows.of(path, columns_of(documents)), documents):
            raise RuntimeError(f"the documents of {path} are not read back as they were; nothing has been removed")


def _write_facts(entries: Sequence[PackedEntry], beside: Path) -> None:
    """Writes the packed facts and refuses them unless they are read back the same."""
    write_facts(entries, beside)
    _flush(beside)
    facts = Facts(beside)
    for path, text, documents in entries:
        columns = None if documents is None else columns_of(documents)
        if facts.text(path) != text or facts.columns(path) != columns:
            raise RuntimeError(f"{path} is not read back as it was; nothing has been removed")


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    """True if two tables have the same columns with the same bits: NaN is NaN, and -0.0 is not 0.0."""
    return one.schema.equals(other.schema) and all(
        _bits(ours).equals(_bits(theirs)) for ours, theirs in zip(one.columns, other.columns, strict=True)
    )


def _bits(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    array = column.combine_chunks()
    integers = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
    return array.view(integers[array.type.bit_width]) if pa.types.is_floating(array.type) else array


def _write_loose(entry: PackedEntry, store: ResultStore) -> None:
    """Writes a file as it lay loose, a result after its documents, and refuses it unless it is read back the same."""
    path = store.folder / entry.path
    if entry.documents is not None:
        write_loose_documents(path, entry.documents)
    write_beside(path, lambda beside: beside.write_bytes(entry.text.encode("utf-8")))
    # What was packed before its values were looked at is given back as it is.
    same = entry.documents is None or same_bits(read_documents(path), entry.documents)
    if path.read_bytes() != entry.text.encode("utf-8") or not same:
        raise RuntimeError(f"{path} is not read back as it was packed; the packed files stay")


def _flush(path: Path) -> None:
    """Waits until a file is on the disk: what it replaces is removed next."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(store: ResultStore, found: Found) -> None:
    """Removes what is packed: a result before its documents, which say nothing without it."""
    for name in tqdm(found.entries, desc="removing", unit=" files", delay=1, disable=None):
        path = store.folder / name
        files = [file for file in (path, documents_path(path)) if file in found.stamps]
        if all(signature_of(file) == found.stamps[file] for file in files):
            for file in files:
                file.unlink()
            _remove_empty(path.parent, until=store.folder)


def _remove_left_documents(store: ResultStore, packed: Mapping[str, PackedEntry]) -> Iterator[str]:
    """Removes documents whose result is packed, as an interrupted packing leaves them; names all other such."""
    for documents in sorted(path for path in store.folder.glob("*/*/*.parquet") if not path.name.startswith(".")):
        path = documents.with_suffix(".json")
        if path.exists():
            continue
        entry = packed.get(path.relative_to(store.folder).as_posix())
        if entry is not None and entry.documents is not None and _are(entry.documents, path):
            documents.unlink()
            _remove_empty(path.parent, until=store.folder)
        else:
            yield f"{documents} lies without its json; evaluate again, or delete it"


def _are(documents: pa.Table, path: Path) -> bool:
    """True if the loose documents of a result are these."""
    try:
        return same_bits(read_documents(path), documents)
    except ValueError:
        return False


def _remove_empty(folder: Path, *, until: Path) -> None:
    """Removes an empty folder, and then the one that it was alone in."""
    while folder != until and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


# --- the command line ------------------------------------------------------------------------------------------------


def described(folder: Path, outcome: Outcome, *, unpacked: bool) -> Iterable[str]:
    """The lines that say what was done."""
    yield from (f"{'problem' if unpacked else 'stays loose'}: {problem}" for problem in outcome.problems)
    what = f"{outcome.num_results} results and {outcome.num_others} other files"
    if unpacked:
        yield f"unpacked: {what} in {folder}"
    else:
        sizes = [f"{folder / name} ({(folder / name).stat().st_size / 1e6:.2f} MB)" for name in (FACTS, DOCUMENTS)]
        yield f"packed: {what} in {' and '.join(sizes)}"


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 if everything is packed, 1 if something stays loose."""
    given = parse("pack", arguments)
    outcome = (unpack if given.unpack else pack)(given.folder)
    print("\n".join(described(given.folder, outcome, unpacked=given.unpack)))
    return 1 if outcome.problems else 0
