"""OmniQuant, QAT and GPTQ on two blocks of Gemma-2 9B's and Llama-3.1 8B's shapes, beside `slurm/estimate.py`.

    python -m benchmarks.gpu.fits

Each fit runs whole, on random weights and random text, with few steps; the estimate is that of the same cell.  Beside
the whole stand its parts, so that a constant that is wrong can be told from one that is right.  The operations a second
are the estimated ones divided by measured seconds.  Gemma comes first; the time that is left decides about the rest.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.lines import Line, Scale, run_part, seconds_of
from benchmarks.gpu.step_parts import compiled_lines, parts_of_a_step
from benchmarks.gpu.subjects import BLOCKS, SHAPES, Estimate, Said, Subject, required
from benchmarks.gpu.watched import Steps, Watched
from evaluation.planning.work import SEARCH_OF_A_WEIGHT
from matquant.algorithms import gptq, omniquant, qat
from matquant.algorithms.calibration import Shelf
from matquant.codes.column_solve import solve
from matquant.codes.range_search import search_factors
from matquant.config.cell import GPTQBase, OmniQuantBase, QATBase
from matquant.models.layers.families import blocks, linears
from slurm.estimate import COLUMN_S, FLOAT32_SHARE, GB, MEMORY_BYTES_PER_S, SEARCHING_BYTES
from slurm.jobs import Job

LIMIT_S = 115.0
"""Seconds after which nothing is begun; imports have taken about ten before."""
GEMMA, LLAMA = SHAPES
NUM_LAUNCHES = 1000


class Measurement(NamedTuple):
    """Some lines about one model, and the seconds that have to be left for them."""

    what: str
    model: str
    needs_s: float
    lines: Callable[[Subject], Iterator[Line]]


def fits(scale: Scale) -> Iterator[Line]:
    """The lines of all fits, as far as the time reaches; a fit that fails costs its own lines."""
    end = time.monotonic() + LIMIT_S
    for what, model, needs_s, lines in MEASUREMENTS:
        about = f"{model}, {what}"
        if not scale.small and (left := end - time.monotonic()) < needs_s:
            yield Line(about, note=f"left out: {left:.0f} s are left, and it may take {needs_s:.0f}")
            continue
        try:
            yield from lines(Subject(model, scale))
        except Exception as error:  # of any kind: the other lines are worth as much without this one
            traceback.print_exc()
            yield Line(about, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        free(scale)


def free(scale: Scale) -> None:
    """Gives back what the last fit has held; a traceback may still refer to it until it is collected."""
    gc.collect()
    if scale.device.type == "cuda":
        torch.cuda.empty_cache()


def machine(subject: Subject) -> Iterator[Line]:
    """The machine's own speed: one product of a block, and one copy, beside the estimates' constants."""
    rows, inputs, outputs = (16, 64, 128) if subject.scale.small else (8192, 3584, 14336)
    estimate = Estimate(subject.job("base=gptq_paper"))
    for dtype, speed in ((torch.bfloat16, estimate.speed), (torch.float32, None)):
        x = torch.ones(rows, inputs, dtype=dtype, device=subject.device)
        weight = torch.ones(inputs, outputs, dtype=dtype, device=subject.device)
        seconds = seconds_of(lambda x=x, weight=weight: x @ weight, repeats=10, device=subject.device)
        value, against = 2 * rows * inputs * outputs / seconds / 1e12, None if speed is None else speed / 1e12
        name = str(dtype).removeprefix("torch.")
        yield Line(f"{rows} x {inputs} x {outputs} in {name}", value, "TFLOP/s", against, "constant" if speed else "")
    values = torch.ones(rows, outputs, device=subject.device)
    seconds = seconds_of(values.clone, repeats=10, device=subject.device)
    constant = MEMORY_BYTES_PER_S / 1e12
    yield Line("a copy on the device", 2 * values.nbytes / seconds / 1e12, "TB/s", constant, "constant")
    bare = torch.ones((), device=subject.device)
    seconds = seconds_of(lambda: many(bare), repeats=3, device=subject.device)
    yield Line("an operation on one number", 1e6 * seconds / NUM_LAUNCHES, "us")


def many(number: Tensor) -> None:
    """Many operations, each too small to take longer than its launch."""
    for _ in range(NUM_LAUNCHES):
        number.add_(1)


def omniquant_lines(subject: Subject) -> Iterator[Line]:
    """The paper's OmniQuant with few steps and little text."""
    fitting, lines = fitted(subject)
    estimate = Estimate(omniquant_job(subject))
    yield from lines
    operations = (estimate.with_a_step_more().operations - estimate.operations) / BLOCKS
    yield from parts_of_a_step(Said(f"{subject.name}, OmniQuant", subject.scale), fitting, estimate, operations)


def compiled(subject: Subject) -> Iterator[Line]:
    """The same step through torch.compile."""
    fitting, _ = fitted(subject, steps=1)
    yield from compiled_lines(Said(f"{subject.name}, OmniQuant", subject.scale), fitting)


def omniquant_job(subject: Subject, steps: int | None = None) -> Job:
    usual, sequences = (3, 4) if subject.scale.small else (24, 16)
    steps = usual if steps is None else steps
    return subject.job("base=omniquant_paper", f"base.num_steps={steps}", f"data.num_sequences={sequences}")


def fitted(subject: Subject, steps: int | None = None) -> tuple[omniquant.BlockFit, list[Line]]:
    """The problem of the last block of a whole fit, and what the fit has shown."""
    job = omniquant_job(subject, steps)
    said, estimate, watched = Said(f"{subject.name}, OmniQuant", subject.scale), Estimate(job), Watched(subject.device)
    cell, progress = job.cell, Steps(subject.device)
    assert isinstance(cell.base, OmniQuantBase)
    settings = omniquant.Settings(cell.base, *required(cell), cell.seed, Shelf())
    model, tokens = subject.model(job), subject.tokens(job)
    places = {
        "the input of the first block": (omniquant, "capture"),
        "the teacher's output of a block": (omniquant, "block_outputs"),
        "the attention of a block": (omniquant, "attend"),
        "all steps of a block": (omniquant.BlockFit, "run"),
        "a student's output of a block": (omniquant.BlockFit, "advance"),
    }
    with watched.watching(places):
        omniquant.fit(model, tokens, settings, progress)
    fitting = watched.calls["all steps of a block"][0]
    assert isinstance(fitting, omniquant.BlockFit)
    if cell.base.num_steps < 2:
        return fitting, []
    above = watched.above["all steps of a block"]
    return fitting, [
        *said.steps(progress.seconds(warm_up=0 if subject.scale.small else 4), estimate, per_step=BLOCKS),
        *said.whole(watched, estimate),
        *said.memory("peak of the steps, above what is held before", max(above), estimate.above_gb),
    ]


def gptq_lines(subject: Subject) -> Iterator[Line]:
    """The published MatGPTQ with little text."""
    sequences, group = (4, 32) if subject.scale.small else (16, 128)
    job = subject.job("base=gptq_paper", f"grid.group_size={group}", f"data.num_sequences={sequences}")
    said, estimate, watched = Said(f"{subject.name}, GPTQ", subject.scale), Estimate(job), Watched(subject.device)
    cell, size = job.cell, estimate.size
    assert isinstance(cell.base, GPTQBase)
    settings = gptq.Settings(cell.base, *required(cell), Shelf())
    identity = torch.eye(group, device=subject.device)  # the factorization's library is loaded at its first call
    solve(identity, identity, objective=settings.objective, spec=settings.grid, base=cell.base)
    model, tokens = subject.model(job), subject.tokens(job)
    places = {
        "the input of the first block": (gptq, "capture"),
        "the attention of a block": (gptq, "attend"),
        "the second moments of a block": (gptq.BlockSolve, "second_moments"),
        "a solve, gate and up before down": (gptq, "solve"),
    }
    with watched.watching(places):
        gptq.fit(model, tokens, settings, Steps(subject.device))
    yield from said.whole(watched, estimate)
    above = watched.above["a solve, gate and up before down"]
    yield from said.memory("peak of a solve, above what is held before", max(above), estimate.above_gb)
    moments = 3 * size.in_block * tokens.numel()
    yield said.seconds(
        "the second moments of a block, of their operations",
        watched.seconds["the second moments of a block"][-1],
        moments / (FLOAT32_SHARE * estimate.speed),
        operations=moments,
    )
    solves = sum(watched.seconds["a solve, gate and up before down"]) / BLOCKS
    line = said.seconds("the solves of a block", solves, COLUMN_S * size.columns / BLOCKS)
    yield replace(line, note=f"{1e6 * solves * BLOCKS / size.columns:.3g} us a column")


def qat_lines(subject: Subject) -> Iterator[Line]:
    """The paper's QAT with one sequence a step."""
    steps = ("base.num_steps=5", "base.batch_size=1", "base.micro_batch_size=1", "data.num_sequences=4")
    job = subject.job("base=qat_paper", *steps)
    said, estimate, watched = Said(f"{subject.name}, QAT", subject.scale), Estimate(job), Watched(subject.device)
    cell, progress = job.cell, Steps(subject.device)
    assert isinstance(cell.base, QATBase)
    kind = subject.device.type
    settings = qat.Settings(cell.base, *required(cell), cell.seed, device_type=kind)
    model, tokens = subject.model(job), subject.tokens(job)
    with watched.watching({"the weights in float32": (qat, "install"), "every step": (qat.Training, "advance")}):
        qat.fit(model, tokens, settings, progress)
    yield from said.steps(progress.seconds(), estimate)
    yield from said.whole(watched, estimate)
    for what, above in watched.above.items():
        if kind == "cuda":
            yield Line(f"{said.about}: peak of {what}, above what is held before", max(above) / GB, "GB")


def ranges(subject: Subject) -> Iterator[Line]:
    """The search for the ends of one layer's grids, which a fit can start from."""
    for grid in ("per_channel", "group_32" if subject.scale.small else "group_128"):
        job = subject.job("base=search", f"grid={grid}")
        said, estimate = Said(f"{subject.name}, {grid}", subject.scale), Estimate(job)
        objective, _, spec = required(job.cell)
        weight = linears(blocks(subject.model(job))[0], "ffn")["mlp.down_proj"].weight
        seconds = seconds_of(
            partial(search_factors, weight, objective, spec, reach=1.5),
            repeats=1,
            device=subject.device,
        )
        traffic, operations = SEARCHING_BYTES * weight.numel(), SEARCH_OF_A_WEIGHT * weight.numel()
        against = traffic / MEMORY_BYTES_PER_S + operations / estimate.speed
        line = said.seconds("the search for the ends of down_proj", seconds, against)
        yield replace(
            line, note=f"{seconds * MEMORY_BYTES_PER_S / weight.numel():.4g} bytes a weight, of {SEARCHING_BYTES}"
        )


MEASUREMENTS = (
    Measurement("the machine", GEMMA, 5, machine),
    Measurement("OmniQuant", GEMMA, 20, omniquant_lines),
    Measurement("GPTQ", GEMMA, 20, gptq_lines),
    Measurement("QAT", GEMMA, 15, qat_lines),
    Measurement("the search for ranges", GEMMA, 10, ranges),
    Measurement("OmniQuant", LLAMA, 15, omniquant_lines),
    Measurement("GPTQ", LLAMA, 15, gptq_lines),
    Measurement("QAT", LLAMA, 10, qat_lines),
    Measurement("a compiled step", GEMMA, 40, compiled),
)


def main() -> None:
    run_part(fits, __doc__)


if __name__ == "__main__":
    main()
