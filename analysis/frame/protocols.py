"""The protocol that is asked for: tables show the numbers that a read-out means, and a gap where there is another.

An accuracy over 50 documents and one over 10000, or on another split, mean different things.  The read-out of the
command decides which one is shown; results of other protocols are named once, with the option that shows them.

A read-out does not set everything: the version of lm-eval, and the commit of a data set on the hub.  Of results that
differ in these alone one set is shown for each task of a model: that of the installed version, else the latest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis.frame.conventions import OF_ANY_TEXT, is_other_convention, option_of_convention
from analysis.frame.options import Option, option_of, option_of_documents
from evaluation.protocol import asks_for, directions, own_tasks, repeated_tasks, settings, shown_tasks
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.store import Result, protocol_id

if TYPE_CHECKING:
    from evaluation.results.store import Protocol, ResultStore
    from matquant.config.cell import Cell
    from matquant.config.setup import Readout

__all__ = ["Asked", "asked_for", "directions", "mixed_checkpoints", "own_tasks", "repeated_tasks", "shown_tasks"]
UNSET = ("lm_eval", "data")
"""The facts that a read-out does not set, or not wholly."""


@dataclass(frozen=True)
class Asked:
    """The results that a read-out asks for, and sentences about the others.

    `problems`: of results that are shown and yet not alike, or of others, if none is shown.  `others`: of results that
    are not shown.
    """

    results: list[Result]
    problems: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def asked_for(results: Sequence[Result], readout: Readout, cells: Mapping[str, Cell]) -> Asked:
    """The results that were measured as a read-out asks; `cells`: by id.

    Models are apart because a protocol may have to differ between them: Gemma needs a BOS token, others must not have
    it.
    """
    differences = _Differences(readout)
    models = {cell_id: cell.model.name for cell_id, cell in cells.items()}
    columns: dict[tuple[str, str], dict[str, list[Result]]] = {}
    others: dict[tuple[Option, ...], list[Result]] = {}
    for result in results:
        protocol = protocol_id(result.protocol)
        if found := differences.of(result, protocol, add_bos=cells[result.cell_id].sets_bos):
            others.setdefault(found, []).append(result)
        else:
            column = columns.setdefault((models[result.cell_id], result.task), {})
            column.setdefault(protocol, []).append(result)
    kept: list[Result] = []
    older: dict[str, list[Result]] = {}
    for column in columns.values():
        groups = sorted(column.values(), key=_preference)
        kept += groups[-1]
        for group in groups[:-1]:
            older.setdefault(_unset_difference(group[0].protocol, groups[-1][0].protocol), []).extend(group)
    sentences = [_other_text(found, group, nothing=not kept) for found, group in others.items()]
    sentences += [_not_shown(group, difference) for difference, group in older.items()]
    if not kept:
        return Asked(kept, tuple(sentences))
    return Asked(kept, (*_old_versions(kept), *_mixed(kept, models)), tuple(sentences))


def mixed_checkpoints(results: Iterable[Result], store: ResultStore | None) -> list[str]:
    """A sentence for each cell whose results were read from more than one checkpoint, with the way out."""
    checkpoints: dict[str, set[str | None]] = {}
    for result in results:
        checkpoints.setdefault(result.cell_id, set()).add(result.checkpoint)
    mixed = {cell_id: len(found) for cell_id, found in checkpoints.items() if len(found) > 1}
    return [
        f"{cell_id}: results come from {number} different checkpoints; measure all of them again"
        + ("" if store is None else f" after: {store.removal(cell_id)}")
        for cell_id, number in mixed.items()
    ]


class _Differences:
    """The differences of protocols from the ones that a read-out sets, each protocol looked at once."""

    def __init__(self, readout: Readout) -> None:
        self._settings = cache(lambda add_bos: settings(readout, add_bos=add_bos))
        self._asks_for = cache(lambda task, data: asks_for(readout, task, data))
        self._readout = readout
        self._found: dict[tuple[str, str, bool], tuple[Option, ...]] = {}

    def of(self, result: Result, protocol: str, *, add_bos: bool) -> tuple[Option, ...]:
        key = (result.task, protocol, add_bos)
        if key not in self._found:
            self._found[key] = tuple(self._options(result.task, result.protocol, self._settings(add_bos)))
        return self._found[key]

    def _options(self, task: str, stored: Protocol, wanted: Mapping[str, Protocol]) -> Iterable[Option]:
        asked = wanted.get(task, {})
        is_asked, names = self._asks_for(task, str(stored.get("data"))), {**asked, **stored}
        if is_other_convention(stored, asked, is_asked=is_asked):
            yield option_of_convention(stored, self._readout)
            names = OF_ANY_TEXT
        elif not is_asked:
            yield option_of_documents(stored, self._readout, task)
        differing = [name for name in names if name not in UNSET and stored.get(name) != asked.get(name)]
        if len(differing) > 1 and "members" in differing:  # the tasks of a group differ in the same
            differing.remove("members")
        if "apply_chat_template" in differing and "prompt_date" in differing:  # chats alone have a date
            differing.remove("prompt_date")
        for name in differing:
            yield option_of(name, stored.get(name), asked.get(name))


def _other_text(options: Sequence[Option], group: Sequence[Result], *, nothing: bool) -> str:
    """`12 results (...) with limit 50 instead of 100 are not shown; add readout.limit=50 to show them`."""
    difference = ", ".join(dict.fromkeys(option.difference for option in options))
    typed = " ".join(dict.fromkeys(part for option in options for part in option.typed.split(" ")))
    can_be_typed = all(option.typed for option in options)
    remedy = f"add {typed} to show them" if can_be_typed else "run the same command with `matquant run` to measure anew"
    start = "nothing was measured as this command asks: " if nothing else ""
    return f"{start}{_not_shown(group, difference)}; {remedy}"


def _not_shown(group: Sequence[Result], difference: str) -> str:
    return f"{_whose(group)} with {difference} {'is' if len(group) == 1 else 'are'} not shown"


def _whose(results: Sequence[Result]) -> str:
    """`12 results (piqa, boolq; smollm2_135m-none-22ace2a0 at full and others)`."""
    tasks = ", ".join(dict.fromkeys(result.task for result in results))
    reads = list(dict.fromkeys(f"{result.cell_id} at {result.plan}" for result in results))
    several = "s" if len(results) > 1 else ""
    return f"{len(results)} result{several} ({tasks}; {reads[0]}{' and others' if len(reads) > 1 else ''})"


class _Preference(NamedTuple):
    of_this_version: bool
    finished: str


def _preference(group: Sequence[Result]) -> _Preference:
    finished = max(str(result.provenance.get("finished", "")) for result in group)
    return _Preference(group[0].protocol.get("lm_eval") == _installed(), finished)


@cache
def _installed() -> str:
    return metadata.version("lm_eval")


def _unset_difference(ours: Protocol, theirs: Protocol) -> str:
    """`lm_eval 0.4.8 instead of 0.4.13`."""
    fields = [name for name in UNSET if ours.get(name) != theirs.get(name)]
    return ", ".join(f"{name} {ours.get(name)} instead of {theirs.get(name)}" for name in fields)


def _old_versions(kept: Iterable[Result]) -> list[str]:
    """A sentence for each version of lm-eval that is not the installed one."""
    found: dict[Any, list[Result]] = {}
    for result in kept:
        if result.task != LOG_PPLX and result.protocol.get("lm_eval") != _installed():
            found.setdefault(result.protocol.get("lm_eval"), []).append(result)
    return [
        f"{_whose(results)}: measured with lm_eval {version}, and {_installed()} is installed; "
        "`matquant run` with the same options measures again"
        for version, results in found.items()
    ]


def _mixed(kept: Iterable[Result], models: Mapping[str, str]) -> list[str]:
    """A sentence for each fact that no read-out sets and in which tasks or models differ."""
    columns = {(result.task, models[result.cell_id]): result.protocol for result in kept}
    problems: dict[str, list[str]] = {}
    for task in dict.fromkeys(task for task, _ in columns):
        of_task = {model: protocol for (name, model), protocol in columns.items() if name == task}
        for name in UNSET:
            values: dict[str, list[str]] = {}
            for model, protocol in of_task.items():
                values.setdefault(str(protocol.get(name)), []).append(model)
            if len(values) > 1:
                shown = "; ".join(f"{value} for {', '.join(of)}" for value, of in values.items())
                problems.setdefault(f"differ in {name}: {shown}", []).append(task)
    sentences = [f"{', '.join(tasks)}: models {problem}; do not compare them" for problem, tasks in problems.items()]
    for model in dict.fromkeys(models.values()):
        versions: dict[str, list[str]] = {}
        for (task, of), protocol in columns.items():
            if of == model and task != LOG_PPLX:
                versions.setdefault(str(protocol.get("lm_eval")), []).append(task)
        if len(versions) > 1:
            shown = "; ".join(f"{version} for {', '.join(sorted(tasks))}" for version, tasks in versions.items())
            sentences.append(f"Task Avg is over tasks that differ in lm_eval: {shown}")
    return sentences
