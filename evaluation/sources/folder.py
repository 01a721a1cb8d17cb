"""Documents from a local mirror, <folder>/<task>/*.{parquet,jsonl,json,arrow}, in the hub's own columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from evaluation.sources.table import SPLITS, ArcSplit, scored_split
from matquant.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class FolderSource:
    """The six tasks of the paper, from the user's own files."""

    folder: Path
    arc_split: ArcSplit = "test"
    kind: ClassVar[str] = "folder"

    def split(self, task_name: str) -> str:
        return scored_split(task_name, self.arc_split)

    def revision(self, task_name: str) -> str:
        """The folder, and the content of its files; UserError if there are none."""
        folder = self._of_task(task_name)
        return f"{folder.resolve()}@{fingerprint(_files_of(folder, self.split(task_name)))}"

    def can_be(self, task_name: str, revision: str) -> bool:
        """True for the content of the folder; if it cannot be read, for any content of a folder of that name."""
        try:
            return revision == self.revision(task_name)
        except (UserError, OSError):
            return revision.rpartition("@")[0] == str((self.folder / task_name).resolve())

    def documents(self, task_name: str) -> Dataset:
        """The documents of a task, its files in the order of their names."""
        import datasets

        files = _files_of(self._of_task(task_name), self.split(task_name))
        return datasets.concatenate_datasets([_read(path) for path in files])

    def _of_task(self, task_name: str) -> Path:
        folder = self.folder / task_name
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; {_layout(self.split(task_name))}")
        return folder


def _layout(split: str) -> str:
    return (
        f"readout.data_dir holds a folder for each task, and in it the {split} split as *.parquet, *.jsonl, *.json or "
        "*.arrow (save_to_disk) in the hub's own columns"
    )


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files of one split, all in one format; UserError if there are none, or others among them."""
    about = {"state.json", "dataset_info.json", "dataset_infos.json"}
    files = sorted(path for path in folder.iterdir() if path.suffix in READERS and path.name not in about)
    if not files:
        raise UserError(f"{folder} holds no documents; {_layout(split)}")
    if len({path.suffix for path in files}) > 1:
        raise UserError(f"{folder} holds several formats ({', '.join(path.name for path in files)}); keep one")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file; {_layout(split)}")
        if path.name.startswith(tuple(other for other in SPLITS if other != split)):
            raise UserError(f"{path} is named after another split than {split}, which is scored; keep only {split}")
    return files


def fingerprint(files: Iterable[Path]) -> str:
    """Twelve hex digits of the content of some files, in order; their names do not count."""
    content = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); make it readable or remove it") from error
    return content.hexdigest()[:12]


def _read(path: Path) -> Dataset:
    try:
        documents = READERS[path.suffix](path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as documents in {path.suffix[1:]} ({error}); replace or remove it"
        ) from error
    if len(documents) == 0:
        raise UserError(f"{path} holds no documents; replace or remove it")
    return documents


# Not datasets.load_dataset: it would answer from its cache, which knows local files by name and time, not by content.
def _read_parquet(path: Path) -> Dataset:
    import datasets
    import pyarrow.parquet

    return datasets.Dataset(pyarrow.parquet.read_table(path))


def _read_jsonl(path: Path) -> Dataset:
    import datasets

    return datasets.Dataset.from_list([json.loads(line) for line in path.read_text("utf-8").splitlines() if line])


def _read_json(path: Path) -> Dataset:
    import datasets

    if not isinstance(rows := json.loads(path.read_text("utf-8")), list):
        raise TypeError("no list of documents")
    return datasets.Dataset.from_list(rows)


def _read_arrow(path: Path) -> Dataset:
    import datasets

    return datasets.Dataset.from_file(str(path), in_memory=True)


READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json, ".arrow": _read_arrow}
