"""What a job will take, on paper: hours, memory of one GPU, disk.  The arithmetic of docs/experiments.md.

Good to a factor of two: enough to ask for the right partition, and to see that a model does not fit before it fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from matquant.cell import Cell, GPTQBase, MinMaxBase, NoBase, OmniQuantBase, QATBase
from matquant.models import blocks, linears, skeleton
from matquant.setup import Setup
from matquant.widths import TOURNAMENT
from slurm.jobs import Job

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
START_S = 60.0  # of any job: importing, loading the model and the tasks
MEMORY_BYTES_PER_S = 3e12
DOCUMENTS = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "hellaswag": 10042,
    "piqa": 1838,
    "winogrande": 1267,
}
TOKENS_PER_DOCUMENT = 150  # of its choices, the context they share counted once
GB = 1e9


@dataclass(frozen=True)
class Cost:
    """`gpu_hours` counts every GPU of the job (or this machine's CPUs); `memory_gb` is that of one GPU."""

    gpu_hours: float
    memory_gb: float
    disk_gb: float


@dataclass(frozen=True)
class _Size:
    """Of a model: all weights, those in scope, the largest block's, and what an activation is made of."""

    weights: int
    in_scope: int
    in_block: int
    hidden: int
    layers: int
    vocabulary: int


def cost_of(job: Job, num_plans: int) -> Cost:
    """What a job takes on the cluster that its setup names; `num_plans` is how many an evaluation still reads."""
    cell, setup = job.cell, job.setup
    size = _size_of(cell, setup.paths.cache)
    if job.part is not None:
        return _evaluation(cell, setup, size, num_plans)
    match cell.base:
        case NoBase() | MinMaxBase():
            return Cost(START_S / 3600, size.weights * BYTES[cell.model.dtype] / GB, _checkpoint_gb(cell, size))
        case OmniQuantBase() as base:
            return _omniquant(cell, base, setup, size)
        case QATBase() as base:
            return _qat(cell, base, setup, size)
        case GPTQBase() as base:
            return _gptq(cell, base, setup, size)
        case _:
            assert_never(cell.base)


def _omniquant(cell: Cell, base: OmniQuantBase, setup: Setup, size: _Size) -> Cost:
    assert cell.data is not None
    length, slices = cell.data.sequence_length, _num_slices(cell)
    trained = base.num_steps * base.batch_size * length
    operations = 4.7 * size.in_scope * trained * slices + 2 * size.weights * _calibration_tokens(cell) * (slices + 1)
    traffic = 160 * size.in_scope * base.num_steps  # every weight of a block, about 40 times a step in float32
    seconds = operations / _speed(setup) + (traffic / MEMORY_BYTES_PER_S if setup.cluster.kind == "slurm" else 0)
    per_number = 6 * BYTES[base.activation_dtype] + 3 * BYTES[base.compute_dtype]  # six sets of states, three halves
    states = _calibration_tokens(cell) * size.hidden * per_number
    step = base.batch_size * length * size.hidden * 12 * BYTES[base.compute_dtype] * slices + 32 * size.in_block
    memory = size.weights * BYTES[cell.model.dtype] + step + (states if setup.activations == "device" else 0)
    disk = _checkpoint_gb(cell, size) * 2 + (states / GB if setup.activations == "disk" else 0)
    return Cost((START_S + seconds) / 3600, memory / GB, disk)


def _gptq(cell: Cell, base: GPTQBase, setup: Setup, size: _Size) -> Cost:
    assert cell.data is not None
    tokens = _calibration_tokens(cell)
    # Two passes through every block, and the second moments of its inputs: where a feed-forward network is four times
    # as wide as its input, 1.4 x 2 operations a weight and token.  The solve is small beside them.
    operations = (4 * size.weights + 3 * size.in_scope) * tokens
    # Every column of a block of columns is a pass over what is left of the block, in float32.
    traffic = 4 * size.in_scope * base.block_size
    seconds = operations / _speed(setup) + (traffic / MEMORY_BYTES_PER_S if setup.cluster.kind == "slurm" else 0)
    states = tokens * size.hidden * (2 * BYTES[base.activation_dtype] + BYTES[base.compute_dtype])
    solve = 24 * size.in_block + 16 * (4 * size.hidden) ** 2
    memory = size.weights * BYTES[cell.model.dtype] + solve + (states if setup.activations == "device" else 0)
    disk = _checkpoint_gb(cell, size) * 2 + (states / GB if setup.activations == "disk" else 0)
    return Cost((START_S + seconds) / 3600, memory / GB, disk)


def _qat(cell: Cell, base: QATBase, setup: Setup, size: _Size) -> Cost:
    assert cell.data is not None
    ranks, slices = ranks_of(Job(cell, setup)), _num_slices(cell)
    tokens = base.num_steps * base.batch_size * cell.data.sequence_length
    operations = (8 if base.activation_checkpointing else 6) * size.weights * tokens * slices
    on_one = (base.micro_batch_size or math.ceil(base.batch_size / ranks)) * cell.data.sequence_length
    kept = 2 if base.activation_checkpointing else 34  # activations of a token in a block, in units of its width
    activations = on_one * (size.hidden * size.layers * kept * BYTES[base.compute_dtype] + size.vocabulary * 20)
    # In float32: weight, gradient, AdamW's two moments and the update's copy.
    sharded = size.weights * BYTES[cell.model.dtype] + 20 * size.in_scope
    embedding = size.vocabulary * size.hidden * BYTES[cell.model.dtype]  # stays gathered
    memory = sharded / ranks + activations + 12 * size.in_block + (embedding if ranks > 1 else 0)
    disk = _checkpoint_gb(cell, size) + 2 * 12 * size.in_scope / GB  # a state, and the next one beside it
    return Cost((ranks * START_S + operations / _speed(setup)) / 3600, memory / GB, disk)


def _evaluation(cell: Cell, setup: Setup, size: _Size, num_plans: int) -> Cost:
    readout = setup.readout
    documents = sum(min(readout.limit or 10**9, DOCUMENTS.get(task, 5000)) for task in readout.tasks)
    tokens = documents * TOKENS_PER_DOCUMENT
    if readout.perplexity is not None:
        tokens += readout.perplexity.num_sequences * readout.perplexity.sequence_length
    tokens *= num_plans
    if cell.data is not None:
        tokens += (
            _passes_of_searches(cell, setup, size, num_plans) * readout.search.num_sequences * cell.data.sequence_length
        )
    # Twice: short sequences keep no GPU busy.
    seconds = START_S + 2 * 2 * size.weights * tokens / _speed(setup)
    logits = readout.batch_size * TOKENS_PER_DOCUMENT * size.vocabulary * 4
    codes = 0 if cell.objective is None else 1.2 * size.in_scope
    return Cost(seconds / 3600, (size.weights * BYTES[readout.dtype] + codes + logits) / GB, 1e-3 * num_plans)


def _passes_of_searches(cell: Cell, setup: Setup, size: _Size, num_plans: int) -> float:
    """How often searches for plans read their text, if as many of them are missing as of other plans."""
    plans, spec = setup.readout.plans_of(cell), setup.readout.search
    evolution = 1 + spec.generations * sum(
        survivors * share for survivors, (_, share) in zip((spec.offspring, 16, 4), TOURNAMENT, strict=True)
    )
    names = [plan.strategy for plan in plans if plan.strategy is not None]
    passes = sum(evolution for name in names if name.startswith("evolution"))
    # Every unit at every width below int8, once for all budgets; two units of fused layers in each network, about.
    passes += sum(4 * size.layers * (2 if name.endswith("linear") else 1) for name in {*names} if "dynamic" in name)
    return passes * num_plans / max(1, len(plans))


def ranks_of(job: Job) -> int:
    """How many processes a job is: one for each GPU of a training that is spread over them."""
    if not job.is_distributed:
        return 1
    nodes = job.setup.cluster.nodes if job.setup.cluster.kind == "slurm" else 1
    return max(1, job.num_gpus * nodes)


def _speed(setup: Setup) -> float:
    """Floating point operations a second of one GPU, as the cluster's file says."""
    return 1e12 * setup.cluster.tflops


def _checkpoint_gb(cell: Cell, size: _Size) -> float:
    """A byte for each code, and a scale and a zero for each group."""
    if cell.grid is None:
        return 0.0
    group = cell.grid.group_size or size.hidden
    return size.in_scope * (1 + 2 * BYTES[cell.grid.scale_dtype] / group) / GB


def _num_slices(cell: Cell) -> int:
    assert cell.objective is not None
    return len(cell.objective.slices)


def _calibration_tokens(cell: Cell) -> int:
    assert cell.data is not None
    return cell.data.num_sequences * cell.data.sequence_length


_SIZES: dict[tuple[str, str | None], _Size] = {}


def _size_of(cell: Cell, cache: Path) -> _Size:
    """The size of a cell's model, which is built without weights once for each scope."""
    key = (cell.model.model_dump_json(), cell.scope)
    if key not in _SIZES:
        model = skeleton(cell.model, cache=cache)
        in_blocks = [
            sum(linear.weight.numel() for linear in linears(block, cell.scope).values()) if cell.scope else 0
            for block in blocks(model)
        ]
        config = model.config
        _SIZES[key] = _Size(
            weights=sum(parameter.numel() for parameter in model.parameters()),
            in_scope=sum(in_blocks),
            in_block=max(in_blocks),
            hidden=config.hidden_size,
            layers=len(in_blocks),
            vocabulary=config.vocab_size,
        )
    return _SIZES[key]
