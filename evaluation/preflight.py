"""Checks that come before anything is computed: of folders, of task names, and of models that cannot be had."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluation.identity import identity_refusals, require_same_sources
from evaluation.protocol import is_complete, task_source
from evaluation.results.store import ResultStore
from evaluation.sources.loading import check_task_names
from matquant.config.cell import Cell
from matquant.config.setup import Setup
from matquant.config.study import Study
from matquant.errors import UserError
from matquant.runs.files import require_writable

FOLDERS = ("runs", "results", "out", "cache")


def check(studies: Sequence[Study]) -> None:
    """Refuses studies that cannot be run, before the first cell of the first of them starts.

    A study whose results are all there runs nothing: neither its tasks nor its models are looked at.
    """
    for setup in _distinct(studies):
        check_folders(setup)
    for study in studies:
        require_same_sources(study.cells, study.setup)
    unfinished = [study for study in studies if not is_finished(study)]
    for setup in _distinct(unfinished):
        check_tasks(setup)
    for study in unfinished:
        for reason in refusals(study.cells, study.setup).values():
            raise UserError(reason)


def _distinct(studies: Iterable[Study]) -> Iterable[Setup]:
    return {study.setup.model_dump_json(): study.setup for study in studies}.values()


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
        require_writable(getattr(setup.paths, option).expanduser(), f"paths.{option}")


def check_tasks(setup: Setup) -> None:
    """Refuses tasks that their source does not know."""
    check_task_names(setup.readout.tasks, task_source(setup.readout))


def refusals(cells: Sequence[Cell], setup: Setup) -> dict[str, str]:
    """The reasons by cell id why cells cannot be run: a model is out of reach, lacks the scope or misfits the grid."""
    from evaluation.contexts import check_contexts  # torch takes seconds to import
    from matquant.algorithms.block_wise import require_block_wise
    from matquant.models.loading import check_model

    verdicts: dict[str, str | None] = {}
    refused = {}
    for cell in cells:
        facts = cell.model_dump_json(
            include={
                **dict.fromkeys(("model", "grid", "scope", "partial_scope", "data"), True),
                "base": {"kind"},
            }
        )
        if facts not in verdicts:
            try:
                check_model(cell, cache=setup.paths.cache, heldout=setup.readout.perplexity)
                require_block_wise(cell, cache=setup.paths.cache)
                check_contexts(cell, setup.readout, cache=setup.paths.cache)
                verdicts[facts] = None
            except UserError as error:
                verdicts[facts] = str(error)
        if (reason := verdicts[facts]) is not None:
            refused[cell.id] = reason
    # Once more: the models' configurations were asked for, so the commit of a model on the hub is known now.
    return {**identity_refusals(cells, setup), **refused}
