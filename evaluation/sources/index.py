"""The names of tasks, groups and tags, and the yaml files that they stand for: lm-eval's own, and those of a user.

lm-eval reads its folders in the same way, but takes 15 s for what takes 4 s here, and has to be imported for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from evaluation.sources.table import PAPER_TASKS
from evaluation.sources.yaml_files import read_yaml
from matquant.errors import UserError

IGNORED = {"__pycache__", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class Entry:
    """A name that can be typed.  A tag has no file of its own, but the names of the tasks that carry it."""

    name: str
    kind: Literal["task", "group", "tag"]
    path: Path | None = None
    tasks: tuple[str, ...] = ()


Entries = Mapping[str, Entry]


@dataclass(frozen=True, eq=False)
class Index:
    """The names of a folder of yaml files, and a sentence for each file that cannot be read as a task."""

    entries: Entries
    problems: tuple[str, ...] = ()


def lm_eval_folder() -> Path:
    """The folder of lm-eval's own tasks, found without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


@cache
def whole_index() -> Entries:
    """Every task of lm-eval: 4 s."""
    return _index(lm_eval_folder()).entries


@cache
def paper_index() -> Entries:
    """The folders of the paper's six tasks."""
    folders = dict.fromkeys(lm_eval_folder() / task.yaml for task in PAPER_TASKS.values())
    return {name: entry for folder in folders for name, entry in _index(folder).entries.items()}


def own_index(folder: str) -> Index:
    """The names of a user's folder; UserError if it is none, or holds no task."""
    return _own_index(Path(folder), tuple(_states(Path(folder))))


@cache
def _own_index(folder: Path, _states: tuple[Any, ...]) -> Index:
    if not folder.is_dir():
        raise UserError(f"readout.include_path={folder} is not a folder; name one that holds lm-eval's yaml files")
    found = _index(folder)
    if not found.entries:
        why = f" ({found.problems[0]})" if found.problems else ""
        raise UserError(
            f"readout.include_path={folder} holds no yaml file of a task or a group{why}; each needs `task: NAME` or "
            "`group: NAME`, and a name that ends in .yaml"
        )
    return found


def _states(folder: Path) -> Iterator[tuple[str, int]]:
    """The yaml files of a folder with the time of their last change, so that an edited one is read again.

    A file that others include often has no ending.
    """
    for path in sorted(folder.glob("**/*")):
        if path.suffix in ("", ".yaml", ".yml") and path.is_file():
            yield str(path), path.stat().st_mtime_ns


def _yaml_files(folder: Path) -> list[Path]:
    files = (path for path in folder.glob("**/*.yaml") if not IGNORED.intersection(path.parts))
    return sorted(files, key=lambda path: path.as_posix())


def _index(folder: Path) -> Index:
    """As lm-eval does it: files in the order of their paths, the first of a name counts."""
    entries: dict[str, Entry] = {}
    tags: dict[str, set[str]] = {}
    problems = []
    for path in _yaml_files(folder):
        try:
            config = read_yaml(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            problems.append(f"{path} cannot be read: {' '.join(str(error).split())}")
            continue
        kind = "task" if "class" in config else "group" if "group" in config else "task"
        name = config.get(kind)
        if not isinstance(name, str):
            problems.append(f"{path} has neither `task: NAME` nor `group: NAME`")
            continue
        if name in entries:
            problems.append(f"{path} has the name '{name}' of {entries[name].path}, which counts")
            continue
        entries[name] = Entry(name, kind, path)
        if kind == "task":
            for tag in _tags(config.get("tag")):
                tags.setdefault(tag, set()).add(name)
    named = {tag: Entry(tag, "tag", tasks=tuple(sorted(tasks))) for tag, tasks in tags.items() if tag not in entries}
    return Index({**entries, **named}, tuple(problems))


def _tags(value: Any) -> Iterable[str]:
    return [value] if isinstance(value, str) else value or ()


def yaml_of(name: str) -> Path:
    """lm-eval's own description of a task."""
    path = (paper_index() if name in PAPER_TASKS else whole_index())[name].path
    assert path is not None
    return path
