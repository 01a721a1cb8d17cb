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

from evaluation.asked import Asked, asked_tasks, prompting, wanted
from evaluation.board import Board
from evaluation.identity import held_out_source, require_same_codes, require_same_widths
from evaluation.protocol import WHOLE, PlanShare, missing, protocols, task_source
from evaluation.results.kept import results_artifact
from evaluation.results.metrics import LOG_PPLX
from evaluation.results.readouts import readout_flips, readout_point, readout_rows, summary_of_widths
from evaluation.results.store import BLOCK_SHARE, Documents, Key, Protocol, Result, ResultStore
from evaluation.sources.loading import loaded_task
from evaluation.tasks.contexts import Cut, check_cut, cut_documents
from evaluation.tasks.group_scores import group_result, ordered
from evaluation.tasks.language_model import SharedContextLM
from evaluation.tasks.scoring import Bar, language_model, num_answers, score_tasks
from evaluation.text.scores import score_text
from evaluation.text.teacher import Teacher, teacher_of
from matquant.codes.extra_precision import code_statistics, effective_bits, overhead_bits
from matquant.codes.nested import materialize
from matquant.config.cell import Cell, ForeignModel
from matquant.config.setup import Readout, Setup
from matquant.errors import UserError
from matquant.models.checks import title
from matquant.models.devices import pick_device, say_what_it_costs
from matquant.models.foreign.loading import foreign_bits, read_foreign
from matquant.models.layers.coverage import check_layers, coverage
from matquant.models.loading import LoadedModel, load_model
from matquant.models.text.tokens import digest_of, heldout_tokens
from matquant.notation import FULL_BITS, Plan
from matquant.runs.checkpoint import NestedCheckpoint, load_checkpoint
from matquant.runs.files import read_json
from matquant.runs.folder import RunDir
from matquant.runs.provenance import provenance
from matquant.runs.sources import Sources, claim, present_sources
from matquant.runs.status import Beat, silent
from matquant.runs.stopping import give_way
from matquant.runs.tracked.labels import READOUT
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
    require_same_codes(cell, setup)
    store.put_cell(cell.id, cell.model_dump(mode="json"))
    found, lacking = _found(cell, setup, gaps, store)
    gaps = {plan: gaps[searched] for searched, plan in found.items()}
    if not gaps:
        raise _not_found(cell, lacking)
    asked = asked_tasks(setup.readout)
    bench = _bench(cell, setup, {task for tasks in gaps.values() for task in tasks} - asked.groups.keys())
    if (checkpoint := bench.checkpoint) is not None:
        store.put_codes(cell.id, {"checkpoint": checkpoint.checksum, **code_statistics(checkpoint.layers)})
        if (took := RunDir(setup.paths.runs, cell.id).training).exists():
            store.put_training(cell.id, read_json(took))
    known = protocols(setup.readout, add_bos=cell.sets_bos)
    shown, counted = _shown(asked, known), {task: known[task] for task in asked.averaged}
    sizes = {str(plan): bench.size_of(tasks) for plan, tasks in gaps.items()}
    with Board(cell.id, sizes, beat) as board:
        for plan, tasks in gaps.items():
            with board.plan(str(plan)) as line:
                for result, documents in bench.results(plan, tasks, line):
                    store.put(result, documents)
                    line.add(result.task, result.metrics)
                    give_way(f"evaluating {cell.id} at {plan} after {result.task}")
                for result in _put_groups(cell.id, plan, asked, known, tasks, store):
                    line.add(result.task, result.metrics)
            point = readout_point(readout_rows(store, cell.id, shown), str(plan), asked.averaged)
            flips = readout_flips(store, cell, counted, str(plan))
            tracker.log(point | {f"{READOUT}{kind}": share for kind, share in flips.items()})
    if lacking:
        raise _not_found(cell, lacking)
    publish(cell, setup, tracker)


def _shown(asked: Asked, known: Mapping[str, Protocol]) -> dict[str, Protocol]:
    """The protocols of the tasks and groups that stand in tables, and of log perplexity."""
    return {task: protocol for task, protocol in known.items() if task in asked.shown or task == LOG_PPLX}


def _put_groups(
    cell_id: str, plan: Plan, asked: Asked, known: Mapping[str, Protocol], tasks: Collection[str], store: ResultStore
) -> Iterator[Result]:
    """Stores the scores of the groups among some tasks, from the results of their tasks."""
    for name in (name for name in asked.groups if name in tasks):
        group = asked.groups[name]
        keys = {leaf.name: Key(cell_id, str(plan), leaf.name, known[leaf.name]) for leaf in group.leaves}
        scores = ordered(group, [store.read(store.path(key)) for key in keys.values()])
        documents = {task: store.documents(key) for task, key in keys.items()}
        result, together = group_result(group, known[name], scores, documents)
        store.put(result, together)
        yield result


def _found(cell: Cell, setup: Setup, plans: Iterable[Plan], store: ResultStore) -> tuple[dict[Plan, Plan], list[Plan]]:
    """Plans with the widths that a search has found, which are kept with the results; and plans without widths yet.

    The first are measured even if there are some of the second.
    """
    run, found, lacking = RunDir(setup.paths.runs, cell.id), dict[Plan, Plan](), list[Plan]()
    for plan in plans:
        if plan.strategy is None:
            found[plan] = plan
        elif (facts := found_plan(run, setup.readout, plan)) is not None:
            require_same_widths(cell, plan, facts, store)
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


def publish(cell: Cell, setup: Setup, tracker: Tracker) -> None:
    """Tells a tracker everything that was measured of a cell, by this process and by others."""
    store, run = ResultStore(setup.paths.results), RunDir(setup.paths.runs, cell.id)
    asked, known = asked_tasks(setup.readout), protocols(setup.readout, add_bos=cell.sets_bos)
    rows = readout_rows(store, cell.id, _shown(asked, known))
    plans = dict.fromkeys(row["plan"] for row in rows)
    counted = {task: known[task] for task in asked.averaged}
    flips = {plan: readout_flips(store, cell, counted, plan) for plan in plans}
    tracker.summarize(
        summary_of_widths(readout_rows(store, cell.id, known), asked.averaged)  # members of groups too
        | {f"{plan}/{kind}": share for plan in plans for kind, share in flips[plan].items()}
    )
    if rows:
        tracker.log({"results": rows})
    if (results := results_artifact(store, run)) is not None:
        tracker.keep(results)


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
        return sum(self.sizes.get(task, 0) for task in tasks)  # groups are answered by their tasks

    def results(self, plan: Plan, tasks: Mapping[str, Protocol], bar: Bar) -> Iterator[tuple[Result, Documents]]:
        """Writes a plan into the model and measures the given tasks, one result after the other."""
        if self.checkpoint is not None:
            materialize(self.loaded.model, self.checkpoint.layers, plan)
        elif isinstance(self.cell.model, ForeignModel):
            read_foreign(self.loaded.model, self.cell.model, plan)
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
        accuracies = {task: self.tasks[task] for task in tasks if task in self.tasks}
        if not accuracies:
            return
        assert self.lm is not None
        description = f"{self.cell.id} at {plan}"
        form = prompting(self.readout)
        scores = score_tasks(
            self.lm, accuracies, limit=self.readout.limit, description=description, bar=bar, prompting=form
        )
        for task, score in scores:
            documents = score.documents
            yield self._result(plan, task, tasks[task], score.metrics, documents, score.seconds), documents

    def _bits(self, plan: Plan) -> tuple[float, Mapping[str, float]]:
        """The effective bits of a plan, and what they leave out."""
        num_parameters = sum(parameter.numel() for parameter in self.loaded.model.parameters())
        if isinstance(self.cell.model, ForeignModel):
            return foreign_bits(self.cell.model, plan, num_parameters=num_parameters)
        if self.checkpoint is None:
            return float(FULL_BITS), {"grid_bits": 0.0, "overflow_bits": 0.0, "model_bits": float(FULL_BITS)}
        assert self.cell.grid is not None
        dtype = self.cell.grid.scale_dtype
        overhead = overhead_bits(self.checkpoint.layers, plan, num_parameters=num_parameters, scale_dtype=dtype)
        share = {} if self.block_share == 1.0 else {BLOCK_SHARE: self.block_share}
        return effective_bits(self.checkpoint.layers, plan), {**overhead, **share}

    @property
    def _made_of(self) -> str | None:
        """The checksum of the codes that are read."""
        if isinstance(self.cell.model, ForeignModel):
            return self.cell.model.content
        return None if self.checkpoint is None else self.checkpoint.checksum

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
        bits, overhead = self._bits(plan)
        return Result(
            cell_id=self.cell.id,
            plan=str(plan),
            task=task,
            protocol=dict(protocol),
            metrics=dict(metrics),
            num_documents=len(documents["doc_id"]),
            effective_bits=bits,
            overhead=overhead,
            checkpoint=self._made_of,
            provenance={
                **provenance(device=_device_name(device), seconds=seconds),
                **({"num_cut": self.num_cut[task]} if task in self.num_cut else {}),
                **({"tokens": digest_of(self.text)} if task == LOG_PPLX and self.text is not None else {}),
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
    leaves = asked_tasks(readout).leaves
    named = {
        name: loaded_task(wanted(leaf, readout, source), readout.limit)
        for name, leaf in leaves.items()
        if name in tasks
    }
    sizes = num_answers(named, limit=readout.limit, prompting=prompting(readout), tokenizer=loaded.tokenizer)
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
