"""The time of planning a large study, and of launching it.

Planning: 1,000 cells, 20 plans, 7 tasks, every result on disk, from the command line to "nothing to submit".  The rival
is the obvious way, composing every cell with Hydra and reading every result, measured on a part and scaled up.

Launching: seconds a job, with a stand-in for sbatch (a shell script that prints a number) that costs next to nothing,
so that what is left is ours: the records, the pickles, submitit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from evaluation.protocol import missing, protocols
from evaluation.results.store import Result, ResultStore
from evaluation.sources.table import PAPER_TASKS
from matquant.checkout import PROJECT
from matquant.config.compose import compose
from matquant.config.study import load_study

NUM_SEEDS, SAMPLE, NUM_JOBS = 250, 10, 200
WIDTHS = [f"int{bits}" for bits in range(8, 1, -1)]
PLANS = [*WIDTHS, *(f"pyramid@{2 + number / 2:.1f}" for number in range(13))]


def overrides(folder: Path, num_seeds: int) -> list[str]:
    cells = f"cells=[{{grid:[group_32,per_channel],scope:[ffn,ffn_attention],seed:{list(range(num_seeds))}}}]"
    paths = [f"paths.{name}={folder / name}" for name in ("runs", "results", "out")]
    readout = [f"readout.plans=[{','.join(PLANS)}]", f"readout.tasks=[{','.join(PAPER_TASKS)}]"]
    study = ["name=large", "model=tiny", "base=omniquant", "bits=matquant", "readout=smoke", "tracking=none"]
    return [*study, *paths, *readout, cells.replace(" ", "")]


def fill(folder: Path) -> int:
    """Writes every result of the study: one, and copies of it under the other names."""
    study = load_study(overrides(folder, NUM_SEEDS))
    store, found = ResultStore(study.setup.paths.results), protocols(study.setup.readout, add_bos=False)
    count = 0
    for number, cell in enumerate(study.cells):
        cell_id = cell.id
        for plan in study.setup.readout.plans_of(cell):
            for task, protocol in found.items():
                result = Result(cell_id, str(plan), task, protocol, {"acc": 0.5, "acc_stderr": 0.01}, 1, 2.0)
                if number < SAMPLE:  # those that the rival reads
                    store.put(result, {"doc_id": [0]})
                else:
                    path = store.path(result.key)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(asdict(result)))
                count += 1
    return count


def launched(arguments: Sequence[str], environment: dict[str, str] | None = None) -> tuple[str, float]:
    """The output of `matquant launch`, and the seconds of the whole process."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "matquant", "launch", *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start


def planning(folder: Path) -> None:
    count = fill(folder)
    text, seconds = launched(overrides(folder, NUM_SEEDS))
    assert "nothing to submit" in text, text
    study = load_study(overrides(folder, NUM_SEEDS))
    store = ResultStore(study.setup.paths.results)
    start = time.perf_counter()
    for number, cell in enumerate(study.cells[:SAMPLE]):
        compose([*overrides(folder, 1), f"seed={1000 + number}"])
        missing(cell, study.setup.readout, store)
    obvious = (time.perf_counter() - start) * len(study.cells) / SAMPLE
    print(f"planning {len(study.cells):,} cells, {count:,} results, all done: {seconds:.1f} s (target 10 s)")
    print(f"  composing each cell and reading each result: about {obvious:.0f} s, {obvious / seconds:.0f}x as long")


def launching(folder: Path) -> None:
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    scripts = {"sbatch": "echo Submitted batch job $$", "squeue": "true", "srun": "true", "scancel": "true"}
    for name, line in scripts.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    seconds = {}
    for num_seeds in (1, NUM_JOBS // 8):
        target = [*overrides(folder / f"launch{num_seeds}", num_seeds), "cluster=slurm"]
        text, seconds[8 * num_seeds] = launched(target, environment)
        assert f"submitted {8 * num_seeds} jobs" in text, text
    (few, start), (many, end) = seconds.items()
    per_job = 1000 * end / many
    print(f"launching {few} jobs: {start:.1f} s; {many} jobs: {end:.1f} s, {per_job:.0f} ms a job (target 200 ms)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        planning(Path(name))
        launching(Path(name))
