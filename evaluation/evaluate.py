"""Stage two: every read-out plan and task of a cell that has no result yet.

The model is loaded once; each plan is written into it in place and measured.  A result is on disk the moment its task
is done, so an interrupted evaluation loses at most one task.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from lm_eval.api.task import Task

from evaluation.board import Board
from evaluation.contexts import Cut, check_cut, cut_documents
from evaluation.identity import held_out_source
from evaluation.language_model import SharedContextLM
from evaluation.protocol import WHOLE, PlanShare, missing, protocols, task_source
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.readouts import readout_flips, readout_point, readout_rows
from evaluation.results.store import BLOCK_SHARE, Documents, Key, Protocol, Result, ResultStore
from evaluation.scoring import Bar, language_model, num_answers, score_tasks
from evaluation.sources.loading import loaded_task
from evaluation.teacher import Teacher, teacher_of
from evaluation.text_scores import score_text
from matquant.codes.extra_precision import code_statistics, effective_bits, overhead_bits
from matquant.codes.nested import materialize
from matquant.config.cell import Cell
from matquant.config.setup import Readout, Setup
from matquant.errors import UserError
from matquant.models.checks import title
from matquant.models.coverage import check_layers, coverage
from matquant.models.devices import pick_device, say_what_it_costs
from matquant.models.loading import LoadedModel, load_model
from matquant.models.tokens import heldout_tokens
from matquant.notation import FULL_BITS, Plan
from matquant.runs.checkpoint import NestedCheckpoint, load_checkpoint
from matquant.runs.files import read_json
from matquant.runs.folder import RunDir
from matquant.runs.provenance import provenance
from matquant.runs.sources import Sources, claim, present_sources
from matquant.runs.status import Beat, silent
from matquant.runs.stopping import give_way
from matquant.runs.tracking import Tracker
from matquant.search.request import found_plan

log = logging.getLogger(__name__)


def evaluate(cell: Cell, setup: Setup, tracker: Tracker, share: PlanShare = WHOLE, beat: Beat = silent) -> None:
    """Measures what is missing, or a share of it, and stores every result as soon as it is there."""
    store = ResultStore(setup.paths.results)
    mine = share.of(setup.readout.plans_of(cell))
    gaps = {plan: tasks for plan, tasks in missing(cell, setup.readout, store).items() if plan in mine}
    if not gaps:
        return
    store.put_cell(cell.id, cell.model_dump(mode="json"))
    found, lacking = _found(cell, setup, gaps, store)
    gaps = {plan: gaps[searched] for searched, plan in found.items()}
    if not gaps:
        raise _not_found(cell, lacking)
    bench = _bench(cell, setup, {task for tasks in gaps.values() for task in tasks})
    if (checkpoint := bench.checkpoint) is not None:
        store.put_codes(cell.id, {"checkpoint": checkpoint.checksum, **code_statistics(checkpoint.layers)})
        if (took := RunDir(setup.paths.runs, cell.id).training).exists():
            store.put_training(cell.id, read_json(took))
    wanted = protocols(setup.readout, add_bos=cell.sets_bos)
    sizes = {str(plan): bench.size_of(tasks) for plan, tasks in gaps.items()}
    with Board(cell.id, sizes, beat) as board:
        for plan, tasks in gaps.items():
            measured: dict[str, float] = {}
            with board.plan(str(plan)) as line:
                for result, documents in bench.results(plan, tasks, line):
                    store.put(result, documents)
                    line.add(result.task, result.metrics)
                    give_way(f"evaluating {cell.id} at {plan} after {result.task}")
                    measured |= _named(result)
            point = readout_point(readout_rows(store, cell.id, wanted), str(plan))
            tracker.log(measured | point | readout_flips(store, cell, wanted, str(plan)))
    if lacking:
        raise _not_found(cell, lacking)
    publish(cell, setup.readout, store, tracker)


def _found(cell: Cell, setup: Setup, plans: Iterable[Plan], store: ResultStore) -> tuple[dict[Plan, Plan], list[Plan]]:
    """Plans with the widths that a search has found, which are kept with the results; and plans without widths yet.

    The first are measured even if there are some of the second.
    """
    run, found, lacking = RunDir(setup.paths.runs, cell.id), dict[Plan, Plan](), list[Plan]()
    for plan in plans:
        if plan.strategy is None:
            found[plan] = plan
        elif (facts := found_plan(run, setup.readout, plan)) is not None:
            store.put_plan(cell.id, str(plan), facts)
            found[plan] = store.plan(cell.id, plan)
        else:
            lacking.append(plan)
    return found, lacking


def _not_found(cell: Cell, plans: Sequence[Plan]) -> UserError:
    # As they are typed: the part behind a dash follows from readout.search.
    typed = " ".join(str(plan).partition("-")[0] for plan in plans)
    return UserError(
        f"no widths were found yet for {', '.join(map(str, plans))} of {cell.id}; search for them with "
        f"`matquant search {typed}` and the overrides of this cell, then evaluate again"
    )


def publish(cell: Cell, readout: Readout, store: ResultStore, tracker: Tracker) -> None:
    """Tells a tracker everything that was measured of a cell, by this process and by others."""
    wanted = protocols(readout, add_bos=cell.sets_bos)
    keys = [Key(cell.id, str(plan), task, wanted[task]) for plan in readout.plans_of(cell) for task in wanted]
    results = [store.read(store.path(key)) for key in keys if store.has(key)]
    tracker.summarize({name: value for result in results for name, value in _named(result).items()})
    if rows := readout_rows(store, cell.id, wanted):
        tracker.log({"results": rows})


def _named(result: Result) -> dict[str, float]:
    return {f"eval/{result.plan}/{result.task}/{name}": value for name, value in result.metrics.items()}


@dataclass(frozen=True)
class Bench:
    """A model in memory and everything needed to measure plans on it."""

    cell: Cell
    readout: Readout
    loaded: LoadedModel
    lm: SharedContextLM | None
    checkpoint: NestedCheckpoint | None
    sources: Sources
    held_out: Sources
    tasks: Mapping[str, Task]
    sizes: Mapping[str, int]
    text: torch.Tensor | None
    num_cut: Mapping[str, int]
    """Documents that are measured without their start, where the read-out allows it."""
    teacher: Teacher | None = None
    """The unquantized model's reading of the text, where that is compared with."""

    def size_of(self, tasks: Collection[str]) -> int:
        """The number of steps that measuring some tasks takes: answers to score, or sequences of text."""
        return sum(self.sizes[task] for task in tasks)

    def results(self, plan: Plan, tasks: Mapping[str, Protocol], bar: Bar) -> Iterator[tuple[Result, Documents]]:
        """Writes a plan into the model and measures the given tasks, one result after the other."""
        if self.checkpoint is not None:
            materialize(self.loaded.model, self.checkpoint.layers, plan)
        if LOG_PPLX in tasks:
            assert self.text is not None
            start = time.monotonic()
            metrics, blocks = score_text(
                *(self.loaded.model, self.text, self.teacher),
                batch_size=self.readout.batch_size,
                description=f"{self.cell.id} at {plan}",
                bar=bar,
            )
            seconds = time.monotonic() - start
            yield self._result(plan, LOG_PPLX, tasks[LOG_PPLX], metrics, blocks, seconds), blocks
        accuracies = {task: self.tasks[task] for task in tasks if task != LOG_PPLX}
        if not accuracies:
            return
        assert self.lm is not None
        description = f"{self.cell.id} at {plan}"
        scores = score_tasks(self.lm, accuracies, limit=self.readout.limit, description=description, bar=bar)
        for task, score in scores:
            documents = score.documents
            yield self._result(plan, task, tasks[task], score.metrics, documents, score.seconds), documents

    def _overhead(self, plan: Plan) -> dict[str, float]:
        if self.checkpoint is None:
            return {"grid_bits": 0.0, "overflow_bits": 0.0, "model_bits": float(FULL_BITS)}
        num_parameters = sum(parameter.numel() for parameter in self.loaded.model.parameters())
        overhead = overhead_bits(self.checkpoint.layers, plan, num_parameters=num_parameters)
        return overhead if self.block_share == 1.0 else {**overhead, BLOCK_SHARE: self.block_share}

    @cached_property
    def block_share(self) -> float:
        """The share of the scope's weights that the cell quantizes; below 1 only where its scope says `partial`."""
        assert self.cell.scope is not None
        return coverage(self.loaded.model, self.cell.scope).share

    def _result(
        self,
        plan: Plan,
        task: str,
        protocol: Protocol,
        metrics: Mapping[str, float],
        documents: Documents,
        seconds: float,
    ) -> Result:
        device = next(self.loaded.model.parameters()).device
        return Result(
            cell_id=self.cell.id,
            plan=str(plan),
            task=task,
            protocol=dict(protocol),
            metrics=dict(metrics),
            num_documents=len(documents["doc_id"]),
            effective_bits=float(FULL_BITS)
            if self.checkpoint is None
            else effective_bits(self.checkpoint.layers, plan),
            overhead=self._overhead(plan),
            checkpoint=None if self.checkpoint is None else self.checkpoint.checksum,
            provenance={
                **provenance(device=_device_name(device), seconds=seconds),
                **({"num_cut": self.num_cut[task]} if task in self.num_cut else {}),
            },
            sources=self.sources if task != LOG_PPLX else {**self.sources, **self.held_out},
        )


def _bench(cell: Cell, setup: Setup, tasks: Collection[str]) -> Bench:
    """Loads everything that is needed to measure some tasks of a cell."""
    readout, device = setup.readout, pick_device(setup)
    say_what_it_costs(readout.dtype, device, "readout.dtype", "another protocol")
    before = present_sources(cell, setup.paths.cache)
    loaded = load_model(cell.model, cache=setup.paths.cache, dtype=readout.dtype, device=device)
    sources = claim(cell, setup, before)
    checkpoint = None
    if cell.objective is not None:
        folder = RunDir(setup.paths.runs, cell.id).checkpoint
        checkpoint = load_checkpoint(folder, cell, device=str(device))
        check_layers(cell, loaded.model, checkpoint.layers, folder)
    source = task_source(readout)
    named = {task: loaded_task(task, source, readout.limit) for task in readout.tasks if task in tasks}
    sizes = num_answers(named, limit=readout.limit)
    lm, cut = None, dict[str, Cut]()
    if named:
        lm = language_model(
            loaded.model,
            loaded.tokenizer,
            batch_size=readout.batch_size,
            add_bos=cell.sets_bos,
        )
        cut = {
            name: cut_documents(task, loaded.tokenizer, max_length=lm.max_length, add_bos=cell.sets_bos)
            for name, task in named.items()
        }
        check_cut(cut, readout, model=title(cell.model), max_length=lm.max_length)
    text, held_out, teacher = None, dict[str, str](), None
    if readout.perplexity is not None and LOG_PPLX in tasks:
        text = heldout_tokens(readout.perplexity, loaded.tokenizer, add_bos=cell.sets_bos)
        sizes[LOG_PPLX], held_out = len(text), held_out_source(setup)
        if checkpoint is not None and readout.divergence is not False:
            # Before any plan is written into the model.
            content, cache = sources.get("model"), setup.paths.cache
            teacher = teacher_of(loaded.model, text, content=content, batch_size=readout.batch_size, cache=cache)
    num_cut = {name: len(found.documents) for name, found in cut.items()} if readout.cut_contexts else {}
    return Bench(cell, readout, loaded, lm, checkpoint, sources, held_out, named, sizes, text, num_cut, teacher)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
