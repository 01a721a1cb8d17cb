"""The numbers of a model card: what was measured on one checkpoint, and on its baselines in the same results folder.

A card has no read-out of its own that it asks for: it shows what there is.  Of a task that was measured under several
protocols one is chosen, and baselines are shown under that one alone.  Results of other codes with the same cell id are
left out, and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.frame.load import LoadedResults, frame_of_reads, read_all
from analysis.frame.names import Read, reads_of
from analysis.frame.summary import summary
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.readouts import is_of_tuning_text
from evaluation.results.store import Protocol, Result, ResultStore, protocol_id
from matquant.config.cell import Cell
from matquant.errors import UserError
from matquant.notation import Plan

if TYPE_CHECKING:
    import pandas as pd

    from matquant.config.setup import Readout

Widths = Mapping[str, Mapping[str, str]]
"""The slice of every layer, of plans that were searched for, by name."""


@dataclass(frozen=True)
class Exported:
    """The checkpoint that a card is of, as its folder describes it."""

    cell: Cell
    checksum: str
    model_content: str | None
    """The fingerprint of the model that was quantized; None if it was not recorded."""
    plans: Widths

    def is_of_same_model(self, result: Result) -> bool:
        """False for a result of other weights under the model's name."""
        content = result.sources.get("model")
        return content is None or self.model_content is None or content == self.model_content


@dataclass(frozen=True)
class CardNumbers:
    """Rows of `summary`, of the checkpoint at every width and of its baselines, and what is to be said of them."""

    cell_id: str
    loaded: LoadedResults
    rows: pd.DataFrame
    reads: Mapping[str, Plan]
    """The read-outs of the checkpoint, by name."""
    protocols: Mapping[str, Protocol]
    """The protocol of every task."""
    problems: Sequence[str]


def card_numbers(exported: Exported, readout: Readout, store: ResultStore) -> CardNumbers:
    """The numbers of a checkpoint and its baselines; the widths that a read-out asks for have rows in any case."""
    cell = exported.cell
    found, unreadable = read_all([cell], store)
    codes = [result for result in found if result.checkpoint == exported.checksum]
    shown = chosen_protocols(codes)
    ours = _measured_like(codes, shown)
    rivals, faults = _baselines(exported, store) if ours else ([], [])
    measured, broken = read_all(rivals, store)
    alike = _measured_like(measured, shown)
    theirs = [result for result in alike if exported.is_of_same_model(result)]
    left_out = [
        *_left_out(len(found) - len(codes), "of other codes of this cell (another checksum)"),
        *_left_out(len(codes) - len(ours), "under other protocols"),
        *_left_out(len(alike) - len(theirs), "of baselines with other weights of the model"),
    ]
    measured_reads, unknown = _reads([cell, *rivals], [*ours, *theirs], exported.plans)
    own = {plan.label: plan for plan in _own_plans(exported, readout)}
    own |= {plan.label: plan for of, plan in measured_reads if of is cell}
    reads = [*((cell, plan) for plan in own.values()), *(read for read in measured_reads if read[0] is not cell)]
    known = {(of.id, plan.label) for of, plan in reads}
    results = [result for result in (*ours, *theirs) if (result.cell_id, result.plan) in known]
    problems = [*unreadable, *faults, *broken, *left_out, *unknown]
    loaded = frame_of_reads(results, reads, _readout_of(readout, shown), store, problems)
    return CardNumbers(cell.id, loaded, summary(loaded), own, shown, loaded.problems)


def chosen_protocols(results: Iterable[Result]) -> dict[str, Protocol]:
    """For each task the protocol that most read-outs were measured under; test text goes before tuning text.

    Of several the one of most documents, then the latest.
    """
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        groups.setdefault(result.task, {}).setdefault(protocol_id(result.protocol), []).append(result)
    return {task: max(of_task.values(), key=_worth)[0].protocol for task, of_task in sorted(groups.items())}


def _worth(group: Sequence[Result]) -> tuple[bool, int, int, str]:
    finished = max(str(result.provenance.get("finished", "")) for result in group)
    return not is_of_tuning_text(group[0].protocol), len(group), group[0].num_documents, finished


def _measured_like(results: Iterable[Result], shown: Mapping[str, Protocol]) -> list[Result]:
    return [result for result in results if shown.get(result.task) == result.protocol]


def _left_out(number: int, of: str) -> list[str]:
    """A sentence, if there is something to say."""
    return [f"{number} result{'s' * (number > 1)} {of} {'is' if number == 1 else 'are'} left out"] if number else []


def _baselines(exported: Exported, store: ResultStore) -> tuple[list[Cell], list[str]]:
    """The baselines with results in the same folder, and a sentence for each cell that cannot be read."""
    found, faults = [], []
    for cell_id in dict.fromkeys(name.rpartition(":")[0] for name in store.readouts()):
        if cell_id == exported.cell.id:
            continue
        try:
            other = Cell.model_validate(json.loads(store.text(cell_id, "cell.json")))
        except UserError:
            raise
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            faults.append(f"{cell_id}/cell.json cannot be read ({reason}), so that it is not known if it is a baseline")
            continue
        if is_baseline(other, exported.cell):
            found.append(other)
    return found, faults


def is_baseline(other: Cell, cell: Cell) -> bool:
    """True for the unquantized model, and for a cell that differs in nothing but being trained for one width alone."""
    if other.objective is None:
        return other.model == cell.model
    return not other.objective.is_nested and other.model_copy(update={"objective": cell.objective}) == cell


def _own_plans(exported: Exported, readout: Readout) -> list[Plan]:
    """The widths that a read-out asks for, and the plans that the folder holds."""
    asked = [plan for _, plan in reads_of([exported.cell], readout) if plan.strategy is None]
    return [*asked, *(plan for label in exported.plans if (plan := plan_of(label, exported.plans)) is not None)]


def _reads(cells: Sequence[Cell], results: Iterable[Result], plans: Widths) -> tuple[list[Read], list[str]]:
    """Everything that was measured, and a sentence for each plan whose widths are not known."""
    by_id = {cell.id: cell for cell in cells}
    reads, unknown = [], []
    for cell_id, label in dict.fromkeys((result.cell_id, result.plan) for result in results):
        plan = plan_of(label, plans)
        if plan is None:
            unknown.append(
                f"results at {label} of {cell_id} are left out, since the widths of its layers are not known"
            )
        else:
            reads.append((by_id[cell_id], plan))
    return reads, unknown


def plan_of(label: str, plans: Widths) -> Plan | None:
    """The plan of a name that results have; None for a file or a search whose widths are not among `plans`."""
    plan, widths = Plan.of_label(label), plans.get(label)
    if widths is not None:
        return (plan or Plan(label)).found(widths)
    return plan if plan is None or plan.strategy is None else None


def _readout_of(readout: Readout, shown: Mapping[str, Protocol]) -> Readout:
    """A read-out of the tasks that were measured; the dtype is that of most of them."""
    dtypes = [protocol["dtype"] for protocol in shown.values() if "dtype" in protocol]
    changes: dict[str, Any] = {"tasks": tuple(task for task in shown if task != LOG_PPLX), "perplexity": None}
    if LOG_PPLX in shown or not shown:  # without any task a read-out has no rows
        changes["tasks"] = (*changes["tasks"], LOG_PPLX)
    if dtypes:
        changes["dtype"] = max(dtypes, key=dtypes.count)
    return readout.model_copy(update=changes)
