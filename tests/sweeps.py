"""Small studies that are launched as jobs, and what must not depend on how often they were interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from matquant.runs import PROJECT
from tests.tiny import tiny_overrides

QUICK = (
    "base=omniquant",
    "base.num_steps=2",
    "base.batch_size=2",
    "base.compute_dtype=float32",
    "readout.tasks=[piqa]",
)
SLOW = (
    *("base=omniquant", "base.num_steps=150", "base.batch_size=2", "base.compute_dtype=float32"),
    *("model.config.num_hidden_layers=8", "readout.tasks=[piqa]", "bits=matquant"),
)
"""Some twenty seconds of training, in eight pieces."""
NAME = "name=sweep"


def program(
    module: str, folder: Path, *arguments: str, environment: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m slurm.launch` or `slurm.status` on the tiny model, with all files under a folder."""
    command = [sys.executable, "-m", module, *tiny_overrides(folder), NAME, *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=environment or variables(), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def launch(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return program("slurm.launch", folder, *arguments, check=check)


def variables() -> dict[str, str]:
    """One thread a process, so that neither the machine nor its load decides how sums are grouped."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def items(folder: Path, *arguments: str) -> dict[tuple[str, str], dict]:
    """What `slurm.status --json` says, by cell and stage."""
    lines = program("slurm.status", folder, *arguments, "--json").stdout.splitlines()
    facts = [json.loads(line) for line in lines]
    return {(fact["cell"], fact["stage"]): fact for fact in facts}


def states(folder: Path, *arguments: str) -> list[str]:
    return [item["state"] for item in items(folder, *arguments).values()]


def run_here(folder: Path, *arguments: str) -> dict[str, bytes]:
    """The same study by run.py, undisturbed: what a sweep must end in."""
    command = [sys.executable, "run.py", *tiny_overrides(folder), NAME, *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bits(folder)


def bits(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions: checkpoints, logs, and results without their provenance."""
    content = {}
    patterns = ("runs/*/checkpoint/*.safetensors", "runs/*/train.jsonl", "results/*/*/*.parquet")
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        content[str(path.relative_to(folder))] = path.read_bytes()
    for path in folder.glob("results/*/*/*.json"):
        measured = {**json.loads(path.read_text()), "provenance": None}
        content[str(path.relative_to(folder))] = json.dumps(measured, sort_keys=True).encode()
    return content


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and training states that nobody needs any more."""
    found = [path for path in folder.rglob("*.tmp") if ".jobs" not in path.parts]
    return found + list(folder.glob("runs/*/state/*"))


def wait_until(happened: Callable[[], object], seconds: float = 120) -> None:
    """Waits for something, and fails if it does not happen."""
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.2)


def pieces(folder: Path) -> Sequence[Path]:
    """The blocks that a training has finished so far."""
    return list(folder.glob("runs/*/state/*.safetensors"))
