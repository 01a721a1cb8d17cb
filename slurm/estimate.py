"""Estimates of what a job takes: hours, memory of one GPU, disk.  docs/experiments.md has the arithmetic.

Good to a factor of two: enough to ask for the right partition, and to see that a model does not fit before it fails.
Constants were measured on an H100 by `make gpu-check`; docs/gpu_measured.md has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from evaluation.planning import speed
from evaluation.planning.room import BYTES, room_of
from evaluation.planning.text_size import sequences_of
from evaluation.planning.work import (
    Size,
    batches_of_plan,
    calibration_tokens,
    compares,
    comparing_operations,
    moment_operations,
    num_slices,
    reading_operations,
    searches_for_ends,
    searching_operations,
    size_of,
    tokens_of_plan,
    tokens_of_task,
    training_operations,
)
from evaluation.results.metrics import LOG_PPLX
from evaluation.text.divergence import LOGITS as COMPARED_AT_ONCE
from evaluation.text.perplexity import LOGITS
from matquant.config.cell import Cell, ForeignBase, GPTQBase, MinMaxBase, NoBase, OmniQuantBase, QATBase, SearchBase
from matquant.config.setup import DebugCluster, LocalCluster, Readout, Setup, SlurmCluster
from matquant.models.devices import pick_device
from matquant.notation import Plan
from slurm.jobs import Job
from slurm.queue import is_slurm

START_S = 60.0  # of a job on a cluster: importing, loading the model and the tasks
START_HERE_S = 15.0  # of a process of this machine, whose disk has read all of it before
MEMORY_BYTES_PER_S = 3e12
READING_BYTES = 910  # of a weight and step of OmniQuant: about 230 passes in float32, {8, 4, 2} and both directions
SEARCHING_BYTES = 43_000  # of a weight whose ends are searched for: about 300 grids, a few dozen passes each
COLUMN_S = 140e-6  # of one column of GPTQ's solve: some twenty launches, whatever its length
FLOAT32_SHARE = 1 / 8  # of a GPU's speed in 16 bits: GPTQ's second moments are products in float32
LAYER_S = 5e-3  # of a layer and batch of answers: short sequences keep no GPU busy, its launches are what takes time
TOKENS_AT_ONCE = 150  # of one answer in a batch: what its logits take
POSITIONS_AT_ONCE = 1024  # at most, of a batch (`evaluation.tasks.language_model`)
COMPARING_BYTES = 140  # of a logit that is compared with the teacher's: some 30 passes in float32; no card has timed it
GB = 1e9


@dataclass(frozen=True)
class Cost:
    """`gpu_hours` counts every GPU of the job (or this machine's CPUs); `memory_gb` is that of one GPU."""

    gpu_hours: float
    memory_gb: float
    disk_gb: float


def cost_of(job: Job, plans: Sequence[Plan] | Mapping[Plan, Sequence[str]]) -> Cost:
    """The cost of a job on the cluster that its setup names; `plans` are those that it still finds or reads.

    With the tasks that each of them lacks; without, an evaluation reads all tasks of each.
    """
    cell, setup = job.cell, job.setup
    size = size_of(cell, setup.paths.cache)
    match job.stage.kind:
        case "train":
            return _training(cell, setup, size)
        case "search":
            return _search(cell, setup, size, tuple(plans))
        case "evaluate":
            return _evaluation(cell, setup, size, *_owed(setup.readout, plans))
        case _:
            assert_never(job.stage.kind)


def _training(cell: Cell, setup: Setup, size: Size) -> Cost:
    match cell.base:
        case NoBase() | ForeignBase() | MinMaxBase():
            return Cost(start_s(setup) / 3600, size.weights * BYTES[cell.model.dtype] / GB, _disk_gb(cell, setup, size))
        case SearchBase():
            seconds = _training_seconds(cell, setup, size)
            memory = size.weights * BYTES[cell.model.dtype] + 2 * GB
            return Cost((start_s(setup) + seconds) / 3600, memory / GB, _disk_gb(cell, setup, size))
        case OmniQuantBase() as base:
            return _omniquant(cell, base, setup, size)
        case QATBase() as base:
            return _qat(cell, base, setup, size)
        case GPTQBase() as base:
            return _gptq(cell, base, setup, size)
        case _:
            assert_never(cell.base)


def _omniquant(cell: Cell, base: OmniQuantBase, setup: Setup, size: Size) -> Cost:
    assert cell.data is not None
    length, slices = cell.data.sequence_length, num_slices(cell)
    traffic = READING_BYTES * size.in_scope * base.num_steps
    seconds = _training_seconds(cell, setup, size, traffic)
    per_number = 6 * BYTES[base.activation_dtype] + 3 * BYTES[base.compute_dtype]  # six sets of states, three halves
    states = calibration_tokens(cell) * size.hidden * per_number
    read = 50 if base.transformation else 32  # bytes of a weight: read, transformed and narrowed for each slice
    step = base.batch_size * length * size.hidden * 12 * BYTES[base.compute_dtype] * slices + read * size.in_block
    memory = size.weights * BYTES[cell.model.dtype] + step + (states if setup.activations == "device" else 0)
    return Cost((start_s(setup) + seconds) / 3600, memory / GB, _disk_gb(cell, setup, size))


def _gptq(cell: Cell, base: GPTQBase, setup: Setup, size: Size) -> Cost:
    assert cell.data is not None
    tokens = calibration_tokens(cell)
    seconds = _training_seconds(cell, setup, size)
    if on_gpu(setup):
        seconds += COLUMN_S * size.columns
        seconds += (1 / FLOAT32_SHARE - 1) * moment_operations(cell, size) / speed_of(setup, base.compute_dtype)
    states = tokens * size.hidden * (2 * BYTES[base.activation_dtype] + BYTES[base.compute_dtype])
    solve = 24 * size.in_block + 16 * (4 * size.hidden) ** 2 + 4 * size.moments
    memory = size.weights * BYTES[cell.model.dtype] + solve + (states if setup.activations == "device" else 0)
    return Cost((start_s(setup) + seconds) / 3600, memory / GB, _disk_gb(cell, setup, size))


def _qat(cell: Cell, base: QATBase, setup: Setup, size: Size) -> Cost:
    assert cell.data is not None
    ranks = ranks_of(Job(cell, setup))
    on_one = (base.micro_batch_size or math.ceil(base.batch_size / ranks)) * cell.data.sequence_length
    kept = 2 if base.activation_checkpointing else 34  # activations of a token in a block, in units of its width
    activations = on_one * (size.hidden * size.layers * kept * BYTES[base.compute_dtype] + size.vocabulary * 20)
    # In float32: weight, gradient, AdamW's two moments and the update's copy.
    sharded = size.weights * BYTES[cell.model.dtype] + 20 * size.in_scope
    embedding = size.vocabulary * size.hidden * BYTES[cell.model.dtype]  # each GPU keeps it whole
    memory = sharded / ranks + activations + 12 * size.in_block + (embedding if ranks > 1 else 0)
    seconds = ranks * start_s(setup) + _training_seconds(cell, setup, size)
    return Cost(seconds / 3600, memory / GB, _disk_gb(cell, setup, size))


def _search(cell: Cell, setup: Setup, size: Size, plans: Sequence[Plan]) -> Cost:
    assert cell.data is not None
    readout, spec = setup.readout, setup.readout.search
    seconds = start_s(setup) + searching_operations(cell, readout, size, plans) / speed_of(setup, readout.dtype)
    # Beside the model and the codes: the logits of a batch, and twice those of a sequence in float32.
    logits = (spec.batch_size * BYTES[readout.dtype] + 8) * cell.data.sequence_length * size.vocabulary
    memory = size.weights * BYTES[readout.dtype] + 1.2 * size.in_scope + logits
    return Cost(seconds / 3600, memory / GB, 1e-4 * len(plans))


def _owed(readout: Readout, plans: Sequence[Plan] | Mapping[Plan, Sequence[str]]) -> tuple[float, int]:
    """The number of plans to read, each a part of one as its tasks are of all; and how often held-out text is read."""
    if not isinstance(plans, Mapping):
        return len(plans), len(plans) if readout.perplexity is not None else 0
    tokens = sum(tokens_of_task(readout, task) for tasks in plans.values() for task in tasks)
    return tokens / max(1, tokens_of_plan(readout)), sum(LOG_PPLX in tasks for tasks in plans.values())


def _evaluation(cell: Cell, setup: Setup, size: Size, num_plans: float, num_texts: int) -> Cost:
    readout = setup.readout
    seconds = start_s(setup) + _reading_seconds(setup, size, num_plans)
    operations = comparing_operations(cell, readout, size, num_texts) if num_texts else 0.0
    comparing = operations / speed_of(setup, readout.dtype)
    teacher = 0.0
    if compares(cell, readout) and num_texts:
        tokens = tokens_of_task(readout, LOG_PPLX)
        teacher = tokens * size.hidden * BYTES[readout.dtype]
        if on_gpu(setup):
            comparing += num_texts * tokens * size.vocabulary * COMPARING_BYTES / MEMORY_BYTES_PER_S
    answers = min(readout.batch_size * TOKENS_AT_ONCE, POSITIONS_AT_ONCE) * size.vocabulary * 4
    codes = 0 if cell.objective is None else 1.2 * size.in_scope
    text = text_bytes(readout, size) if num_texts else 0.0
    memory = size.weights * BYTES[readout.dtype] + codes + max(answers, text)
    return Cost((seconds + comparing) / 3600, memory / GB, 1e-3 * num_plans + teacher / GB)


def text_bytes(readout: Readout, size: Size) -> float:
    """The memory that logits of held-out text take: of a batch, soft-capped, and of one block in float32, twice."""
    spec = readout.perplexity
    if spec is None:
        return 0.0
    of_block, narrow = spec.sequence_length * size.vocabulary, BYTES[readout.dtype]
    batch = of_block * min(readout.batch_size, sequences_of(spec), max(1, LOGITS // of_block))
    return max(2 * narrow * batch, narrow * batch + max(8 * of_block, 24 * min(of_block, COMPARED_AT_ONCE)))


def _reading_seconds(setup: Setup, size: Size, num_plans: float) -> float:
    seconds = reading_operations(setup.readout, size, num_plans) / speed_of(setup, setup.readout.dtype)
    if on_gpu(setup):
        return seconds + LAYER_S * size.layers * batches_of_plan(setup.readout) * num_plans
    return seconds


def _training_seconds(cell: Cell, setup: Setup, size: Size, traffic: float = 0.0) -> float:
    """`traffic`: other bytes through the memory of a GPU; the speed of a CPU includes their time."""
    seconds = training_operations(cell, size) / speed_of(setup, speed.compute_dtype(cell))
    if searches_for_ends(cell):
        traffic += SEARCHING_BYTES * size.in_scope
    return seconds + (traffic / MEMORY_BYTES_PER_S if on_gpu(setup) else 0)


def start_s(setup: Setup) -> float:
    """Seconds before a job begins its work."""
    return START_S if is_slurm(setup.cluster) else START_HERE_S


def ranks_of(job: Job) -> int:
    """The number of processes of a job: one for each GPU of a training that is spread over them."""
    if not job.is_distributed:
        return 1
    nodes = job.setup.cluster.nodes if is_slurm(job.setup.cluster) else 1
    return max(1, job.num_gpus * nodes)


def speed_of(setup: Setup, dtype: str) -> float:
    """Floating point operations a second of one GPU, as the cluster's file says, or of a worker's share of this CPU."""
    tflops = _tflops(setup)
    if tflops is not None:
        return 1e12 * tflops
    workers = setup.cluster.workers if isinstance(setup.cluster, LocalCluster) else 1
    return speed.of_this_cpu(dtype) / workers


def named_speed(setup: Setup) -> str:
    """Where the speed of an estimate is from, in words."""
    tflops = _tflops(setup)
    return "at the speed this CPU has now" if tflops is None else f"at cluster.tflops={tflops:g}"


def on_gpu(setup: Setup) -> bool:
    """True if jobs run on GPUs, whose memory and launches take time of their own."""
    match setup.cluster:
        case SlurmCluster():
            return True
        case LocalCluster(gpus_per_worker=gpus):
            return gpus > 0
        case DebugCluster():
            return pick_device(setup).type == "cuda"
        case _:
            assert_never(setup.cluster)


def _tflops(setup: Setup) -> float | None:
    """The speed that is known without timing; a GPU of this machine that no file has one for is as one of a cluster."""
    known = setup.cluster.tflops
    return SlurmCluster.model_fields["tflops"].default if known is None and on_gpu(setup) else known


def _disk_gb(cell: Cell, setup: Setup, size: Size) -> float:
    """A checkpoint, and what its training may put beside it."""
    room = room_of(cell, setup, size)
    return (room.checkpoint + room.likely) / GB
