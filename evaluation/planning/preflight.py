"""Checks that come before anything is computed: everything that the cells of a study will read or write is looked at.

One function for every way to start: `matquant run`, `matquant launch` and `matquant search`.  From cheap to dear:
folders, names of tasks, models, plans, text, documents of tasks, and room on the disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from evaluation.asked import asked_tasks, check_settings, wanted
from evaluation.identity import identity_refusals, require_same_sources
from evaluation.objective import check_goals
from evaluation.planning.text_parts import check_apart, other_parts
from evaluation.protocol import is_complete, missing, task_source
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import ResultStore
from evaluation.sources.features import check_features, check_rules
from evaluation.sources.loading import loaded_task, revision_of
from matquant.config.cell import Cell, HubText
from matquant.config.setup import Setup
from matquant.config.study import Study
from matquant.disk import FOLDERS, in_words
from matquant.errors import UserError
from matquant.models.text import documents
from matquant.notation import Plan
from matquant.runs.files import require_writable
from matquant.runs.folder import RunDir
from matquant.runs.trackio_run import require_trackio

log = logging.getLogger(__name__)
SILENT_S = 2.0
"""Seconds after which the checks say what they do."""

Kind = Literal["folder", "model", "base", "plan", "text", "task", "length"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are looked at."""


@dataclass(frozen=True)
class Look:
    """One thing to look at; looks of equal facts are made once for all cells."""

    kind: Kind
    facts: str
    look: Callable[[], object] = field(compare=False)


def check(studies: Sequence[Study], searched: Sequence[Plan] = ()) -> None:
    """Refuses studies that cannot be run, before the first cell of the first of them starts.

    A study whose results are all there runs nothing: neither its tasks nor its models are looked at.  `searched`: plans
    that are to be searched for, whatever results there are.
    """
    for setup, _ in _by_setup(studies):
        check_folders(setup)
    for study in studies:
        check_goals(study)
        require_same_sources(study.cells, study.setup)
    unfinished = [study for study in studies if searched or not is_finished(study)]
    groups = _by_setup(unfinished)
    for setup, _ in groups:
        check_tracking(setup)
        check_tasks(setup)
    for setup, cells in groups:
        for reason in refusals(cells, setup, searched).values():
            raise UserError(reason)
    check_room([(cell, study.setup) for study in unfinished for cell in study.cells])


def _by_setup(studies: Iterable[Study]) -> Sequence[tuple[Setup, Sequence[Cell]]]:
    """Every setup once, with the cells of all studies that have it: what they share is looked at once."""
    groups: dict[str, tuple[Setup, list[Cell]]] = {}
    for study in studies:
        groups.setdefault(study.setup.model_dump_json(), (study.setup, []))[1].extend(study.cells)
    return list(groups.values())


def is_finished(study: Study) -> bool:
    """True if every result is on disk; False also where the disk does not tell, which the checks then explain."""
    store = ResultStore(study.setup.paths.results)
    try:
        return all(is_complete(cell, study.setup.readout, store) for cell in study.cells)
    except UserError:
        return False


def check_folders(setup: Setup) -> None:
    """Refuses folders that cannot be written to."""
    for option in FOLDERS:
        require_writable(getattr(setup.paths, option), f"paths.{option}")


def check_tracking(setup: Setup) -> None:
    """Refuses a tracker that was chosen and is not installed; where only a job lacks it, the job runs untracked."""
    if setup.tracking.kind == "trackio":
        require_trackio()


def check_tasks(setup: Setup) -> None:
    """Refuses tasks that their source does not know, and held-out text files that cannot be read."""
    asked, source = asked_tasks(setup.readout), task_source(setup.readout)
    check_settings(setup.readout)
    check_rules(asked.groups.values())
    for leaf in asked.leaves.values():
        check_features(leaf)
        if leaf.kind == "own":
            revision_of(leaf, source)  # its files are there
    if setup.readout.perplexity is not None:
        documents.check_files(setup.readout.perplexity, "heldout")


def check_room(cells: Iterable[tuple[Cell, Setup]]) -> None:
    """Refuses cells whose checkpoints the disk has no room for; a cell that owes no result is not trained."""
    at: dict[Path, dict[str, tuple[Cell, Setup]]] = {}
    for cell, setup in cells:
        if is_complete(cell, setup.readout, ResultStore(setup.paths.results)):
            continue
        at.setdefault(setup.paths.runs.absolute(), {})[cell.id] = (cell, setup)
    for folder, of_folder in at.items():
        from evaluation.planning.room import require_room  # torch takes seconds to import

        require_room(folder, list(of_folder.values()))


def refusals(cells: Sequence[Cell], setup: Setup, searched: Sequence[Plan] = ()) -> dict[str, str]:
    """The reasons by cell id why cells cannot be run: of each cell the first thing that is not as it should be."""
    store = ResultStore(setup.paths.results)
    looks: dict[str, list[Look]] = {}
    for cell in cells:
        owed = {task for tasks in missing(cell, setup.readout, store).values() for task in tasks}
        looks[cell.id] = list(_looks(cell, setup, owed, searched))
    verdicts: dict[Look, str | None] = {}
    refused: dict[str, str] = {}
    with _announced({look for mine in looks.values() for look in mine}), in_words(dict(setup.paths)):
        for kind in KINDS:
            for cell_id, mine in looks.items():
                for look in mine:
                    if look.kind != kind or cell_id in refused:
                        continue
                    if look not in verdicts:
                        verdicts[look] = _verdict(look.look)
                    if (reason := verdicts[look]) is not None:
                        refused[cell_id] = reason
    # Once more: the models' configurations were asked for, so the commit of a model on the hub is known now.
    return {**identity_refusals(cells, setup), **refused}


def _verdict(look: Callable[[], object]) -> str | None:
    try:
        look()
    except UserError as error:
        return str(error)
    return None


@contextmanager
def _announced(looks: Collection[Look]) -> Iterator[None]:
    """Says what is looked at, if that takes long."""
    kinds = [look.kind for look in looks]
    counts = [f"{kinds.count(kind)} {kind}{'s' if kinds.count(kind) > 1 else ''}" for kind in KINDS if kind in kinds]
    timer = threading.Timer(SILENT_S, lambda: log.info("looking at %s", ", ".join(counts)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- what a cell reads -----------------------------------------------------------------------------------------------


def _looks(cell: Cell, setup: Setup, owed: Set[str], searched: Sequence[Plan]) -> Iterator[Look]:
    """Everything that a cell reads on its way to the results that it owes; a cell that owes none reads nothing."""
    if not owed and not searched:
        return
    yield Look("folder", cell.id, partial(_check_folders_of, cell, setup))
    from evaluation.tasks.contexts import check_contexts  # torch takes seconds to import
    from matquant.algorithms.block_wise import require_block_wise
    from matquant.models.loading import check_model

    readout, model = setup.readout, cell.model.model_dump_json()
    facts = cell.model_dump_json(include={"model", "grid", "scope", "partial_scope", "data"})
    check = partial(check_model, cell, cache=setup.paths.cache, heldout=readout.perplexity)
    yield Look("model", facts, check)
    yield Look("base", f"{cell.base.kind} {facts}", partial(require_block_wise, cell, cache=setup.paths.cache))
    for plan in readout.plans_of(cell):
        if plan.layers is not None:
            yield Look("plan", f"{plan} {facts}", partial(_check_plan, plan, cell, setup))
    if _is_to_train(cell, setup):
        assert cell.data is not None
        yield Look("text", f"train {model} {cell.data.model_dump_json()}", partial(_check_training_text, cell, setup))
    searches = searched or (owed and any(plan.strategy is not None for plan in readout.plans_of(cell)))
    if searches and cell.data is not None:
        amounts = f"{readout.search.num_sequences} {cell.data.model_dump_json()}"
        yield Look("text", f"search {model} {amounts}", partial(_check_search_text, cell, setup))
    if LOG_PPLX in owed:
        assert readout.perplexity is not None
        held_out = readout.perplexity.model_dump_json()
        yield Look("text", f"heldout {model} {held_out}", partial(_check_heldout_text, cell, setup))
        folders = {"results": setup.paths.results, "cache": setup.paths.cache}
        for other in other_parts(cell.id, readout.perplexity, ResultStore(setup.paths.results)):
            apart = partial(check_apart, readout.perplexity, other, cell.model, **folders)
            yield Look("text", f"apart {model} {held_out} {other.model_dump_json()}", apart)
    for name, leaf in asked_tasks(readout).leaves.items():
        if name in owed:
            task = wanted(leaf, readout, task_source(readout))
            yield Look("task", name, partial(loaded_task, task, readout.limit))
    if owed - {LOG_PPLX}:
        yield Look("length", f"{model}", partial(check_contexts, cell, readout, cache=setup.paths.cache))


def _check_folders_of(cell: Cell, setup: Setup) -> None:
    """Refuses folders of a cell that are there and cannot be written to, as another person's in a shared place."""
    run, results = RunDir(setup.paths.runs, cell.id), setup.paths.results / cell.id
    plans = [results / str(plan) for plan in setup.readout.plans_of(cell)]
    for key, folders in (("runs", [run.path, run.checkpoint]), ("results", [results, *plans])):
        for folder in folders:
            if folder.exists():
                require_writable(folder, f"paths.{key}")


def _is_to_train(cell: Cell, setup: Setup) -> bool:
    """True if a cell will be trained on text."""
    untrained = not RunDir(setup.paths.runs, cell.id).description.exists()
    return untrained and cell.data is not None


def _check_plan(plan: Plan, cell: Cell, setup: Setup) -> None:
    """Refuses a plan file whose layers are not those of the cell's model."""
    from matquant.codes.layouts import slices_of
    from matquant.models.layers.families import block_name, blocks, linears
    from matquant.models.loading import skeleton

    assert cell.scope is not None
    model = skeleton(cell.model, cache=setup.paths.cache)
    slices_of(
        plan,
        [
            f"{block_name(model, index)}.{name}"
            for index, block in enumerate(blocks(model))
            for name in linears(block, cell.scope)
        ],
    )


def _check_training_text(cell: Cell, setup: Setup) -> None:
    from matquant.models.loading import tokenizer_of
    from matquant.models.text.tokens import training_tokens

    assert cell.data is not None
    if isinstance(cell.data, HubText):
        documents.check_hub(cell.data, "train")
        return
    documents.check_files(cell.data, "train")  # before the tokenizer, which takes longer
    training_tokens(cell, tokenizer_of(cell.model, cache=setup.paths.cache))


def _check_search_text(cell: Cell, setup: Setup) -> None:
    from matquant.models.loading import tokenizer_of
    from matquant.models.text.tokens import search_tokens

    assert cell.data is not None
    if isinstance(cell.data, HubText):
        documents.check_hub(cell.data, "train")
        return
    documents.check_files(cell.data, "train")
    search_tokens(cell, setup.readout.search, tokenizer_of(cell.model, cache=setup.paths.cache))


def _check_heldout_text(cell: Cell, setup: Setup) -> None:
    from matquant.models.loading import tokenizer_of
    from matquant.models.text.tokens import heldout_tokens

    held_out = setup.readout.perplexity
    assert held_out is not None
    if isinstance(held_out, HubText):
        documents.check_hub(held_out, "heldout")
        if not documents.is_of_windows(held_out):  # blocks are read as they come: all of a data set would be downloaded
            return
    tokenizer = tokenizer_of(cell.model, cache=setup.paths.cache)
    heldout_tokens(held_out, tokenizer, add_bos=cell.sets_bos)
