"""Peak memory of a QAT step above model, gradients and optimizer state: slice by slice against the joint graph.

    python -m benchmarks.qat_memory        target: at least 1.8x lower for the three slices {8, 4, 2}

Each way runs in a process of its own.  Its number is the most memory that it held during a step, less the memory that
it held before.  On a GPU torch counts it; on a CPU the kernel does (Linux only).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.timing import smollm2
from matquant.algorithms.objective import nested_loss
from matquant.algorithms.qat import Settings, Training, next_token_loss
from matquant.codes.nested import read_at
from matquant.config.cell import GridSpec, QATBase
from matquant.notation import Objective

NESTED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})
JOINT, SLICE_BY_SLICE = "joint graph (rival)", "slice by slice"


def joint_step(training: Training) -> None:
    """The textbook step: all slices in one graph."""
    tokens = training.tokens[: training.settings.base.batch_size].to(training.model.device)
    outputs = {}
    for part in NESTED.slices:
        with read_at(training.model, part):
            outputs[part] = training._logits_of(tokens)
    loss = nested_loss(NESTED, outputs, lambda _, logits: next_token_loss(logits, tokens), next_token_loss).total
    loss.backward()
    training.optimizer.step()
    # Zeroed, not freed: both ways hold their gradients before and after a step.
    training.optimizer.zero_grad(set_to_none=False)


def peak_bytes(step: Callable[[], object]) -> int:
    """The most memory that a step holds beyond what is held before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kernel_says("VmRSS")
    step()
    return _kernel_says("VmHWM") - before


def _kernel_says(field: str) -> int:
    (kib,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


def measure(way: str, *, num_blocks: int, batch_size: int, sequence_length: int) -> int:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_config(smollm2(num_blocks), dtype=torch.bfloat16).to(device)
    tokens = torch.randint(0, 49152, (batch_size, sequence_length))
    base = QATBase(kind="qat", num_steps=100, batch_size=batch_size, lr=1e-5, warmup_steps=1)
    training = Training(model, tokens, Settings(base, NESTED, "ffn", GridSpec(group_size=64), seed=0))
    for parameter in training._weights():  # the state that every step holds
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=False)
    if way == JOINT:
        return peak_bytes(lambda: joint_step(training))
    return peak_bytes(training.advance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=[JOINT, SLICE_BY_SLICE], help=argparse.SUPPRESS)
    parser.add_argument("--num-blocks", type=int, default=10, help="of SmolLM2's shape")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=128)
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("num_blocks", "batch_size", "sequence_length")}
    if options.way:
        print(measure(options.way, **sizes))
        return
    print(f"QAT step for {{8, 4, 2}}, {sizes}")
    # Freed memory goes back to the kernel, or its count would not come down.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    peaks = {}
    for way in (JOINT, SLICE_BY_SLICE):
        command = [sys.executable, "-m", "benchmarks.qat_memory", "--way", way]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
        peaks[way] = int(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        print(f"  {way:52} {peaks[way] / 2**20:9.1f} MiB {peaks[way] / peaks[JOINT]:6.2f}x")
    print(f"  {peaks[JOINT] / peaks[SLICE_BY_SLICE]:.2f}x lower (target 1.8x)")


if __name__ == "__main__":
    main()
