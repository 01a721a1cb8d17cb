"""Studies with made-up results on disk, for the tests of everything that reads results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evaluation.protocol import protocols
from evaluation.results.store import Result, ResultStore
from matquant.config.cell import Cell
from matquant.config.setup import Paths, Readout, Setup
from matquant.config.study import Study

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matquant.notation import Plan

TASKS = ("arc_easy", "boolq")
MATQUANT = {"int8": 0.1, "int4": 0.1, "int2": 1.0}
TEXT = {"kind": "embedded", "num_sequences": 4, "sequence_length": 16}
OMNIQUANT = {"kind": "omniquant", "num_steps": 2, "batch_size": 2, "clipping_lr": 0.01}
MODEL = {"kind": "random", "name": "tiny", "architecture": "llama"}


def unquantized(**model: Any) -> Cell:
    return Cell.model_validate({"model": {**MODEL, **model}, "base": {"kind": "none"}})


def quantized(
    terms: dict[str, float], *, parent_bits: int = 8, seed: int = 0, num_steps: int = 2, **model: Any
) -> Cell:
    return Cell.model_validate(
        {
            "model": {**MODEL, **model},
            "base": {**OMNIQUANT, "num_steps": num_steps},
            "objective": {"parent_bits": parent_bits, "terms": terms},
            "grid": {},
            "scope": "ffn",
            "data": TEXT,
            "seed": seed,
        }
    )


def paper_cells() -> tuple[Cell, ...]:
    """The rows every table has: unquantized, Sliced int8 with its Baseline, the int2 Baseline, MatQuant."""
    return (
        unquantized(),
        quantized({"int8": 1.0}),
        quantized({"int2": 1.0}, parent_bits=2),
        quantized(MATQUANT),
    )


def study(folder: Path, cells: Sequence[Cell], *, name: str = "made", **readout: Any) -> Study:
    facts = {
        "plans": ("int8", "int4", "int3", "int2"),
        "tasks": TASKS,
        "limit": 100,
        "batch_size": 4,
        "perplexity": TEXT,
    }
    setup = Setup(
        readout=Readout.model_validate({**facts, "source": "embedded", **readout}),
        tracking={"kind": "none"},  # type: ignore[arg-type]
        paths=Paths(runs=folder / "runs", results=folder / "results", out=folder / "out"),
        experiment=name,
    )
    return Study(name, tuple(cells), setup)


def measure(made: Study, *, limit: int | None = None, accuracy: float = 0.5) -> ResultStore:
    """Writes a result for everything the study's read-out asks for."""
    store = ResultStore(made.setup.paths.results)
    for cell in made.cells:
        for plan in made.setup.readout.plans_of(cell):
            for result in results_of(cell, plan, made.setup.readout, limit, accuracy):
                store.put(result, documents_of(result))
    return store


def documents_of(result: Result) -> dict[str, list[Any]]:
    """Documents whose mean is the metric: the first so many are right, or every block has the same nats."""
    numbers = range(result.num_documents)
    metrics = {name: value for name, value in result.metrics.items() if name in ("acc", "acc_norm", "log_pplx")}
    columns = {
        name: [value + 0.001 * (number % 2) for number in numbers]
        if name == "log_pplx"
        else [int(number < round(value * result.num_documents)) for number in numbers]
        for name, value in metrics.items()
    }
    return {"doc_id": list(numbers), **columns}


def results_of(
    cell: Cell, plan: Plan, readout: Readout, limit: int | None = None, accuracy: float = 0.5
) -> Iterator[Result]:
    bits = 16 if plan.default is None else plan.default.bits
    extra = plan.default is not None and plan.default.extra_precision
    overhead = {"grid_bits": 1.25, "overflow_bits": 0.8 * extra, "model_bits": 10.0 + bits / 4}
    if cell.objective is None:
        overhead = {"grid_bits": 0.0, "overflow_bits": 0.0, "model_bits": 16.0}
    common = {
        "cell_id": cell.id,
        "plan": plan.label,
        "num_documents": 100,
        "effective_bits": bits + 0.05 * extra,
        "overhead": overhead,
        "checkpoint": None if cell.objective is None else f"checksum of {cell.id}",
        "provenance": {"commit": "c0ffee" * 6, "dirty": False, "seconds": 1.5, "finished": "2026-01-01T00:00:00Z"},
    }
    measured = readout if limit is None else readout.model_copy(update={"limit": limit})
    wanted = protocols(measured, add_bos=cell.sets_bos)
    for task in readout.tasks:
        value = accuracy + 0.01 * bits + 0.001 * cell.seed
        metrics = {"acc": value, "acc_stderr": 0.03}
        if task != "boolq":
            metrics |= {"acc": value - 0.1, "acc_norm": value, "acc_norm_stderr": 0.04}
        yield Result(task=task, protocol=wanted[task], metrics=metrics, **common)
    if readout.perplexity is None:
        return
    metrics = {"log_pplx": 3.0 + math.exp(3 - bits), "log_pplx_stderr": 0.02, "num_tokens": 64.0}
    yield Result(task="log_pplx", protocol=wanted["log_pplx"], metrics=metrics, **common)
