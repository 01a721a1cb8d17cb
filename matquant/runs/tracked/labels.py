"""The words for a cell that trackers show: the name of its run, its tags, and the fields that runs are grouped by.

omniquant · matquant · gemma2 λ · seed 1 · smollm2_135m
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import yaml

from matquant.config.cell import Cell, ForeignModel, GridSpec
from matquant.config.grid_words import all_words, grid_words
from matquant.config.setup import Readout, Setup
from matquant.config.syntax.files import choices, config_folders
from matquant.notation import Objective

JobType = Literal["train", "evaluate", "cell", "export"]
"""The work of one process for a cell: a stage of it, all of them, or a folder made of its checkpoint."""
EFFECTIVE_BITS, READOUT = "readout/effective_bits", "readout/"
"""The x of every curve over read-outs, and the beginning of the names of those curves."""
COUNTERS = ("train/block", "train/step")
"""Numbers that say where others stand, and are no curves of their own."""
USUAL_GRID, USUAL_SCOPE, USUAL_WIDTHS = GridSpec(group_size=64), "ffn", (8, 4, 2)
"""The choices of conf/config.yaml, and of bits=matquant: a name does not repeat them."""
MOST_TASKS = 3
"""A tag names so many tasks, and counts more."""
LONGEST_NAME, LONGEST_TAG = 128, 64
"""W&B's limits."""


class Labels(NamedTuple):
    """A run as a tracker shows it."""

    name: str
    """The cells of one name differ in fields of their configuration."""
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    """Every key of the cell and of the read-out as it is typed, then the fields."""


def labels_of(cell: Cell, setup: Setup, job_type: JobType) -> Labels:
    """The labels of a cell's run; an export measures nothing, so that no read-out is said to be its."""
    name, readout = " · ".join(_name_parts(cell)), setup.readout
    if job_type == "export":
        config = {**cell.model_dump(mode="json"), **_fields(cell), "experiment": setup.experiment}
        return Labels(f"export · {name}"[:LONGEST_NAME], _as_tags(_words(cell)), config)
    config = {
        **cell.model_dump(mode="json"),
        "readout": readout.model_dump(mode="json"),
        **_fields(cell),
        "experiment": setup.experiment,
        "readout_words": readout_words(readout),
        "limit": readout.limit,
    }
    tags = _as_tags([*_words(cell), readout_words(readout), limit_words(readout)])
    return Labels(name[:LONGEST_NAME], tags, config)


def _words(cell: Cell) -> list[str]:
    """Everything that a cell's name says, its widths one by one, and its whole grid."""
    objective = cell.objective
    found = [cell.model.name, cell.base.kind, _method(cell)]
    if objective is not None:
        taught = distill(objective)
        found += [f"int{bits}" for bits in _widths(objective)]
        found += [_lambda_words(objective), f"distill {taught}" if taught != "none" else ""]
        found += [*all_words(cell).split(", "), cell.scope or ""]
    return [*found, f"seed {cell.seed}" if cell.data is not None else ""]


def _as_tags(words: Iterable[str]) -> tuple[str, ...]:
    # W&B's forms take a comma for the end of a tag.
    return tuple(dict.fromkeys(word.replace(",", "")[:LONGEST_TAG] for word in words if word))


def _fields(cell: Cell) -> dict[str, Any]:
    """The fields that runs are grouped and filtered by; no key of a cell has such a name."""
    objective = cell.objective
    return {
        "cell_id": cell.id,
        "algorithm": cell.base.kind,
        "method": _method(cell),
        "widths": ", ".join(map(str, _widths(objective))),
        "weights": "" if objective is None else weights(objective),
        "distill": "none" if objective is None else distill(objective),
        "grid_words": all_words(cell),
    }


def _method(cell: Cell) -> str:
    """The method of a cell; `foreign gptq` of what somebody else quantized, by the format of its files."""
    return f"foreign {cell.model.format}" if isinstance(cell.model, ForeignModel) else method(cell.objective)


def method(objective: Objective | None) -> str:
    """MatQuant, Single Precision or Baseline; unquantized for a cell without an objective."""
    if objective is None:
        return "unquantized"
    if not objective.is_nested:
        return "Baseline"
    name = "MatQuant" if len(_widths(objective)) > 1 else "Single Precision"
    return f"{name} + Extra Precision" if objective.uses_extra_precision else name


def weights(objective: Objective) -> str:
    """Lambda of the widths by the name of its file, the shortest if several hold it, or as numbers, widest first.

    Empty where one width is trained, which no other is weighed against.
    """
    found = {term.slice.bits: term.weight for term in objective.terms}
    if len(found) < 2:
        return ""
    if set(found.values()) == {1.0}:
        return "uniform"
    named = [name for name, values in _named_weights().items() if values == found]
    return min(named, key=lambda name: (len(name), name), default=_numbers(found))


def distill(objective: Objective) -> str:
    """The wider slices that teach narrower ones, `8->4, 8->2`; `8->2 alone` without the ground truth beside it."""
    truths = {term.slice for term in objective.terms if term.teacher is None}
    taught = [term for term in objective.terms if term.teacher is not None]
    words = [
        f"{term.teacher.bits}->{term.slice.bits}{'' if term.slice in truths else ' alone'}"
        for term in taught
        if term.teacher is not None
    ]
    return ", ".join(words) or "none"


def readout_words(readout: Readout) -> str:
    """`6 tasks and log_pplx`; few tasks are named."""
    few = len(readout.tasks) <= MOST_TASKS
    tasks = list(readout.tasks) if few else [f"{len(readout.tasks)} tasks"]
    return " and ".join([*tasks, *(["log_pplx"] if readout.perplexity is not None else [])])


def limit_words(readout: Readout) -> str:
    """`limit 200`; empty where no task is read, which it would limit."""
    if not readout.tasks:
        return ""
    return "all documents" if readout.limit is None else f"limit {readout.limit}"


def _name_parts(cell: Cell) -> Iterator[str]:
    objective = cell.objective
    yield cell.base.kind if objective is not None else _method(cell)
    if objective is not None:
        widths = _widths(objective)
        nested = len(widths) > 1 and widths != USUAL_WIDTHS
        yield f"{objective.slug} {{{', '.join(map(str, widths))}}}" if nested else objective.slug
        if words := _lambda_words(objective):
            yield words
        if (taught := distill(objective)) != "none":
            yield f"distill {taught}"
        if cell.grid != USUAL_GRID:
            yield grid_words(cell)
        if cell.scope != USUAL_SCOPE:
            yield str(cell.scope)
    if cell.data is not None:
        yield f"seed {cell.seed}"
    yield cell.model.name


def _lambda_words(objective: Objective) -> str:
    """`gemma2 λ`, or `λ 0.3, 1`."""
    name = weights(objective)
    return f"λ {name}" if name[:1].isdigit() else f"{name} λ" if name else ""


def _widths(objective: Objective | None) -> tuple[int, ...]:
    """The widths that are trained, widest first."""
    return () if objective is None else tuple(sorted({term.slice.bits for term in objective.terms}, reverse=True))


def _numbers(found: Mapping[int, float]) -> str:
    return ", ".join(f"{found[bits]:g}" for bits in sorted(found, reverse=True))


@cache
def _named_weights() -> dict[str, dict[int, float]]:
    """The lambda of every file of conf/weights and of studies that can be read."""
    found = {}
    for name in choices("weights"):
        try:
            found[name] = {int(width.removeprefix("int")): float(value) for width, value in _values(name).items()}
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
            continue  # of a file that nobody chose; one that is chosen is refused by name
    return found


def _values(name: str) -> dict[str, Any]:
    """The values of a file of an axis, on top of those that it builds on."""
    path = next(path for root in config_folders() if (path := root / "weights" / f"{name}.yaml").is_file())
    values = yaml.safe_load(path.read_text()) or {}
    before = [one for one in values.pop("defaults", []) if isinstance(one, str) and one != "_self_"]
    return {**{key: value for one in before for key, value in _values(one).items()}, **values}
