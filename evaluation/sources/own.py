"""Documents of tasks beyond the paper's six, as their yaml names them: files of this machine, or data of the hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

from evaluation.sources.folder import fingerprint
from evaluation.sources.hub import commit_of
from evaluation.sources.outline import NAMING, Leaf
from evaluation.sources.yaml_files import Config, plain
from matquant.errors import UserError

FORMATS = ("json", "csv", "parquet", "text", "arrow", "pandas", "xml")
"""The names by which `datasets` reads files of this machine: `dataset_path: json`."""
PLACES = ("data_files", "data_dir", "cache_dir")
"""Keys of `dataset_kwargs` that say where files lie; their content is told apart by itself."""
REMOTE = ("http://", "https://", "hf://", "s3://", "gs://")


def revision_of(leaf: Leaf) -> str:
    """The documents of a task: `json@<content>`, or `path/name@commit`; `hub` or `code` where code makes them."""
    config = leaf.config
    path, subset = config.get("dataset_path"), config.get("dataset_name")
    if "custom_dataset" in config or path is None:
        return "hub" if leaf.kind == "lm_eval" else "code"
    if path in FORMATS:
        splits = _patterns(config)
        if remote := [name for names in splits.values() for name in names if name.startswith(REMOTE)]:
            return f"{path}@{','.join(remote)}"
        return f"{path}@{_by_name({split: fingerprint(files) for split, files in _files_of(leaf, config).items()})}"
    if Path(path).exists():
        place = Path(path)
        files = sorted(one for one in place.rglob("*") if one.is_file()) if place.is_dir() else [place]
        return f"{place.name}@{_by_name({one.relative_to(place).as_posix(): fingerprint([one]) for one in files})}"
    return f"{'/'.join(str(part) for part in (path, subset) if part)}@{commit_of(path)}"


def _by_name(contents: Mapping[str, str]) -> str:
    """One fingerprint of several: their names count, for files that change places are other documents."""
    return digest(dict(contents)) if len(contents) > 1 else next(iter(contents.values()))


def is_on_hub(leaf: Leaf) -> bool:
    """True for a task whose documents are a data set of the hub."""
    path = leaf.config.get("dataset_path")
    return path is not None and path not in FORMATS and not Path(path).exists() and "custom_dataset" not in leaf.config


def can_be(leaf: Leaf, revision: str) -> bool:
    """True for any commit of a data set on the hub; for files, for their content as it is."""
    try:
        mine = revision_of(leaf)
    except UserError:  # a file that is gone
        return revision.partition("@")[0] == leaf.config.get("dataset_path")
    if mine == revision or leaf.config.get("dataset_path") in FORMATS:
        return mine == revision
    return mine.partition("@")[0] == revision.partition("@")[0] and re.fullmatch(r"[^@]+@[^@/]+", revision) is not None


def _patterns(config: Config) -> dict[str, list[str]]:
    """The names of a task's files, as its yaml writes them, by split; without a name of its own it is the only one."""
    given: Any = config.get("dataset_kwargs") or {}
    folder, files = given.get("data_dir"), given.get("data_files")
    if files is None:
        if folder is None:
            return {}
        # By the file, since `datasets` reads the split out of its name.
        names = sorted(name for name in glob(f"{folder}/**/*", recursive=True) if Path(name).is_file())
        return {Path(name).relative_to(folder).as_posix(): [name] for name in names}
    by_split = files if isinstance(files, Mapping) else {"": files}
    return {
        str(split): [
            str(name) if folder is None else str(Path(folder, name))
            for name in ([names] if isinstance(names, str | Path) else names)
        ]
        for split, names in by_split.items()
    }


def _files_of(leaf: Leaf, config: Config) -> dict[str, list[Path]]:
    """The files of a task in order, by split; UserError for one that is not there."""
    splits = _patterns(config)
    if not any(splits.values()):
        raise UserError(
            f"task {leaf.name}: dataset_path: {config['dataset_path']} needs its files; write "
            "`dataset_kwargs: {data_files: {test: FILE}}` into its yaml"
        )
    found: dict[str, list[Path]] = {}
    for split, patterns in splits.items():
        for pattern in patterns:
            files = [Path(name) for name in sorted(glob(pattern, recursive=True)) if Path(name).is_file()]
            if not files:
                raise UserError(
                    f"task {leaf.name}: there is no file {Path(pattern).absolute()}; lm-eval reads data_files from the "
                    "working directory, so write the path in full, or start where it is right"
                )
            found.setdefault(split, []).extend(files)
    return found


def yaml_digest(leaf: Leaf) -> str | None:
    """Eight hex digits over what a task's yaml, or a group above it, says; None for lm-eval's own task as it is.

    Names, the number of examples and the places of files do not count: the same measurement stays the same result.
    """
    facts: Config = leaf.config if leaf.kind == "own" else leaf.changes
    facts = {key: value for key, value in facts.items() if key not in NAMING and value is not None}
    if not facts:
        return None
    if isinstance(given := facts.get("dataset_kwargs"), Mapping):
        facts = {**facts, "dataset_kwargs": {key: value for key, value in given.items() if key not in PLACES}}
    return digest(facts)


@cache
def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def digest(facts: Any) -> str:
    """Eight hex digits over plain values; a function counts by its name and its code."""
    return _of_text(json.dumps(plain(facts), sort_keys=True, default=str))
