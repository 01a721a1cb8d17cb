"""The tasks behind the names that a read-out lists: groups with their members, tags, and one's own yaml files.

Nothing is loaded and lm_eval is not imported.  Members, overrides and names are lm-eval's
(`lm_eval.tasks._factory`); `tests/evaluation/test_outline.py` holds the two against each other.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evaluation.results.metrics import higher_is_better
from evaluation.sources.index import Entry, Index, own_index, paper_index, whole_index, yaml_of
from evaluation.sources.table import PAPER_TASKS
from evaluation.sources.yaml_files import Config, FunctionName, read_yaml
from matquant.errors import UserError

GROUP_KEYS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""The keys of a group's yaml; any other is a setting of all of its tasks."""
DATA_KEYS = ("dataset_path", "dataset_name", "custom_dataset", "training_split", "validation_split", "test_split")
"""Keys that give a task other documents than its yaml does."""
NAMING = ("task", "task_alias", "tag", "group", "task_list", "num_fewshot")
"""Keys that do not change what a task measures, and the number of examples, which a protocol has by itself."""
ROLLING_METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""lm-eval's metrics of whole texts, where a yaml names none."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """One task.  `overrides`: what the groups that list it say about it; `path`: its yaml, if it has one of its own."""

    name: str
    kind: Literal["paper", "lm_eval", "own"]
    path: Path | None
    overrides: Config

    @cached_property
    def config(self) -> Config:
        """The yaml with the overrides; functions are names still."""
        path = yaml_of(self.name) if self.kind == "paper" else self.path
        return {**({} if path is None else read_yaml(path)), **self.overrides, "task": self.name}

    @property
    def num_fewshot(self) -> int | None:
        """The number of examples that the task asks for; None if it leaves that open, 0 if it can have none."""
        if self.is_rolling:
            return 0
        found = self._told.get("num_fewshot")
        return None if found is None else int(found)

    @property
    def _told(self) -> Config:
        # The six are multiple choice and leave the number of examples open: they are planned without reading a file.
        return {"output_type": "multiple_choice", **self.overrides} if self.kind == "paper" else self.config

    @property
    def changes(self) -> Config:
        """The overrides that change what is measured, the number of examples apart."""
        return {key: value for key, value in self.overrides.items() if key not in NAMING}

    @property
    def generates(self) -> bool:
        """True for a task that is answered with generated text."""
        return self._told.get("output_type", "generate_until") == "generate_until"

    @cached_property
    def directions(self) -> Mapping[str, bool]:
        """True for each metric of its yaml of which more is better; by its name where the yaml is silent."""
        if self.is_rolling and not self._told.get("metric_list"):
            return dict.fromkeys(ROLLING_METRICS, False)
        listed = [entry for entry in self._told.get("metric_list") or () if isinstance(entry, Mapping)]
        said = {_metric_name(entry.get("metric")): entry.get("higher_is_better") for entry in listed}
        return {metric: higher_is_better(metric) if more is None else bool(more) for metric, more in said.items()}

    @property
    def is_rolling(self) -> bool:
        """True for a task that scores whole texts, without a prompt."""
        return self._told.get("output_type") == "loglikelihood_rolling"


def _metric_name(metric: Any) -> str:
    """A metric's name; one that is a function has that of the function."""
    return metric.name.rpartition(".")[2] if isinstance(metric, FunctionName) else str(metric)


@dataclass(frozen=True, eq=False)
class TaskGroup:
    """A group.  `rules`: how the scores of its tasks become its own; without any it has none."""

    name: str
    members: Sequence[Leaf | TaskGroup]
    rules: Sequence[Config]
    path: Path | None

    @property
    def leaves(self) -> Iterator[Leaf]:
        for member in self.members:
            if isinstance(member, Leaf):
                yield member
            else:
                yield from member.leaves

    @property
    def groups(self) -> Iterator[TaskGroup]:
        """The groups in it, innermost first, and itself."""
        for member in self.members:
            if isinstance(member, TaskGroup):
                yield from member.groups
        yield self

    @property
    def directions(self) -> Mapping[str, bool]:
        """Directions of the metrics of its tasks, by their yaml."""
        return {metric: higher for leaf in self.leaves for metric, higher in leaf.directions.items()}

    @property
    def inside(self) -> list[str]:
        """The names of its tasks, and of the groups in it."""
        return [*(leaf.name for leaf in self.leaves), *(group.name for group in self.groups if group is not self)]

    @property
    def shown(self) -> Iterator[str]:
        """The names that stand for it in a table: its own, or those of its members if it has no score."""
        if self.rules:
            yield self.name
            return
        for member in self.members:
            if isinstance(member, Leaf):
                yield member.name
            else:
                yield from member.shown


Asked = Leaf | TaskGroup


def outline(name: str, include_path: str | None, *, everything: bool) -> Sequence[Asked]:
    """The tasks and groups of a name that is typed: a task, a group, a tag, or a pattern such as `mmlu_*`.

    `everything`: all tasks of lm-eval can be meant, not only the six and the user's own.
    """
    if include_path is None and name in PAPER_TASKS:
        return [Leaf(name, "paper", None, {})]
    return _Outliner(include_path, everything=everything).named(name)


class _Outliner:
    def __init__(self, include_path: str | None, *, everything: bool) -> None:
        self.include_path, self.everything = include_path, everything
        self.own = own_index(include_path) if include_path is not None else Index({})

    def named(self, name: str) -> Sequence[Asked]:
        if name.endswith((".yaml", ".yml")) or "/" in name:
            path = Path(name)
            raise UserError(
                f"readout.tasks: '{name}' is a path; name its folder and the task or group in it, as "
                f"readout.include_path={path.parent} readout.tasks=[{path.stem}]"
            )
        if any(sign in name for sign in "*?["):
            if not (names := fnmatch.filter(self.known, name)):
                raise UserError(f"readout.tasks: no task of {self.place} has a name like '{name}'")
            return [found for one in sorted(names) for found in self.built(self.entry(one), {})]
        return self.built(self.entry(name), {})

    @property
    def known(self) -> Iterable[str]:
        return {**(whole_index() if self.everything else PAPER_TASKS), **self.own.entries}

    @property
    def place(self) -> str:
        theirs = "lm-eval" if self.everything else f"the six ({', '.join(PAPER_TASKS)})"
        return theirs if self.include_path is None else f"{self.include_path} or {theirs}"

    def find(self, name: str) -> Entry | None:
        """The last folder counts, as in lm-eval: a user's own task hides one of the same name."""
        return self.own.entries.get(name) or paper_index().get(name) or whole_index().get(name)

    def entry(self, name: str) -> Entry:
        """The task or group that a name stands for; UserError, with the nearest names, if it is none to measure."""
        found = self.own.entries.get(name) or (paper_index() if name in PAPER_TASKS else {}).get(name)
        if found is None and self.everything:
            found = whole_index().get(name)
        if found is not None:
            return found
        broken = next((f"; {problem}" for problem in self.own.problems), "")
        if self.everything:
            where = "of lm-eval" if self.include_path is None else f"of {self.place}"
            raise UserError(f"'{name}' is not a task {where}{nearest(name, self.known)}{broken}")
        theirs = "" if self.include_path is None else f" and {self.include_path} has {', '.join(self.own.entries)}"
        raise UserError(
            f"'{name}' is not a task of this readout.source, which has {', '.join(PAPER_TASKS)}{theirs}"
            f"{nearest(name, self.known)}{broken}; readout.source=hub has every task of lm-eval"
        )

    def built(self, entry: Entry, overrides: Config) -> Sequence[Asked]:
        match entry.kind:
            case "tag":
                return [one for name in entry.tasks for one in self.built(self.entry(name), overrides)]
            case "group":
                assert entry.path is not None
                return [self.group(entry.name, read_yaml(entry.path), overrides, entry.path)]
            case "task":
                return [self.leaf(entry, overrides)]

    def leaf(self, entry: Entry, overrides: Config) -> Leaf:
        if entry.name in self.own.entries or any(key in overrides for key in DATA_KEYS):
            kind = "own"
        elif entry.name in PAPER_TASKS:
            kind = "paper"
        elif self.everything:
            kind = "lm_eval"
        else:
            self.entry(entry.name)  # refuses it
            raise AssertionError
        return Leaf(str(overrides.get("task", entry.name)), kind, entry.path, overrides)

    def group(self, name: str, config: Config, overrides: Config, path: Path | None) -> TaskGroup:
        settings = {key: value for key, value in config.items() if key not in GROUP_KEYS}
        merged, members = {**settings, **overrides}, config.get("task")
        found = [
            one for item in (members if isinstance(members, list) else []) for one in self.member(item, name, merged)
        ]
        if not found:
            raise UserError(f"group {name} ({path}) lists no task; give it `task: [NAME, ...]`")
        rules = config.get("aggregate_metric_list") or ()
        return TaskGroup(name, found, [rules] if isinstance(rules, Mapping) else list(rules), path)

    def member(self, item: Any, group: str, overrides: Config) -> Sequence[Asked]:
        if isinstance(item, str):
            if self.find(item) is None:
                raise UserError(f"group {group} lists '{item}', which is not a task of {self.place}{self.near(item)}")
            return self.reference(item, {}, overrides)
        if not isinstance(item, Mapping) or not ("group" in item or "task" in item):
            raise UserError(f"group {group} lists {item!r}, which names neither a task nor a group")
        if "group" in item:
            name = str(item["group"])
            if (entry := self.find(name)) is None:
                return [self.group(f"{group}::{name}", item, overrides, None)]
            return self.built(entry, {**overrides, **{key: value for key, value in item.items() if key != "group"}})
        name = str(item["task"])
        if self.find(name) is None:  # a task that stands in the group's yaml alone
            return [Leaf(f"{group}::{name}", "own", None, {**overrides, **item, "task": f"{group}::{name}"})]
        return self.reference(name, item, overrides)

    def near(self, name: str) -> str:
        return nearest(name, self.known)

    def reference(self, name: str, item: Config, overrides: Config) -> Sequence[Asked]:
        entry, merged = self.find(name), {**overrides, **item}
        assert entry is not None
        if entry.kind == "tag":
            return [one for task in entry.tasks for one in self.built(self.entry(task), {"task": task, **merged})]
        return self.built(entry, merged if entry.kind == "group" else {"task": name, **merged})


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
