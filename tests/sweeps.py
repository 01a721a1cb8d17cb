"""Small studies that are launched as jobs, and those of their files that interruptions must not change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.moments import Plan
from tests.processes import Process, fork, variables
from tests.shared import once
from tests.tiny import tiny_overrides

QUICK = (
    "base=omniquant",
    "base.num_steps=2",
    "base.batch_size=2",
    "base.compute_dtype=float32",
    "readout.tasks=[piqa]",
)
STEPS, BLOCKS = 4, 3
STUDY = (
    *("base=omniquant", f"base.num_steps={STEPS}", "base.batch_size=2", "base.compute_dtype=float32"),
    *(f"model.config.num_hidden_layers={BLOCKS}", "readout.tasks=[piqa]", "bits=matquant"),
)
"""Three blocks of four steps: enough moments to be interrupted at."""
NAME = "name=sweep"


def start(folder: Path, *arguments: str, subcommand: str = "launch", plan: Plan | None = None, **how: bool) -> Process:
    """Starts `matquant launch` or `matquant status` on the tiny model, with all files under a folder."""
    environment = {**variables(), **(plan.variables if plan else {})}
    words = ("-m", "matquant", subcommand, *tiny_overrides(folder), NAME, *arguments)
    return fork(*words, environment=environment, **how)


def program(subcommand: str, folder: Path, *arguments: str, check: bool = True, plan: Plan | None = None) -> Process:
    """Runs such a program from start to end."""
    process = start(folder, *arguments, subcommand=subcommand, plan=plan)
    if check:
        return process.check()
    process.wait()
    return process


def launch(folder: Path, *arguments: str, check: bool = True, plan: Plan | None = None) -> Process:
    return program("launch", folder, *arguments, check=check, plan=plan)


def start_run(folder: Path, *arguments: str, plan: Plan | None = None, **how: bool) -> Process:
    """Starts run.py on the tiny model, with all files under a folder."""
    environment = {**variables(), **(plan.variables if plan else {})}
    return fork("run.py", *tiny_overrides(folder), *arguments, environment=environment, **how)


def items(folder: Path, *arguments: str) -> dict[tuple[str, str], dict]:
    """The output of `matquant status --json`, by cell and stage."""
    lines = program("status", folder, *arguments, "--json").stdout.splitlines()
    facts = [json.loads(line) for line in lines]
    return {(fact["cell"], fact["stage"]): fact for fact in facts}


def states(folder: Path, *arguments: str) -> list[str]:
    return [item["state"] for item in items(folder, *arguments).values()]


def run_here(folder: Path, *arguments: str) -> dict[str, bytes]:
    """Runs the same study by run.py, undisturbed; a sweep must end in the same bits."""
    start_run(folder, NAME, *arguments).check()
    return bits(folder)


def undisturbed(shared_folder: Path, name: str, *arguments: str) -> dict[str, bytes]:
    """The folder of an undisturbed run, made once for all tests of a run."""
    return bits(once(shared_folder / "undisturbed" / name, lambda folder: run_here(folder, *arguments)))


def bits(folder: Path) -> dict[str, bytes]:
    """The bits that must not depend on interruptions: checkpoints, logs, and results without their provenance."""
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


def pieces(folder: Path) -> Sequence[Path]:
    """The blocks that a training has finished so far."""
    return list(folder.glob("runs/*/state/*.safetensors"))


def logs(folder: Path) -> str:
    """The ends of the logs of jobs, and their last states."""
    files = [*folder.glob("runs/.jobs/*/*.out"), *folder.glob("runs/*/*.status.json")]
    return "\n".join(f"{path}:\n{path.read_text(errors='replace').strip()[-2000:]}" for path in files)
