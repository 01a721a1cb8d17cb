"""The time in which each command answers, as a whole process, against `python -c "import torch"` in the same run.

    python -m benchmarks.startup                 about two minutes on one core
    python -m benchmarks.startup --repeats 10    when other processes make times vary
    python -m benchmarks.startup help            only the commands whose name has the word in it

For each command: the best and the median of its times, the ratio of its best to the rival's, and the highest ratio
that is meant.  Then its imports: every heavy library that was in `sys.modules` when it ended, with the reason that
stands beside the command in this file.  A library without a reason is shown as a SURPRISE, a reason without its library
as out of date; tests/command/test_startup.py fails at either.

The commands look at a finished study in a temporary folder, whose results are made up: no model is trained or read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.protocol import protocols
from evaluation.results.metrics import HEADLINE_METRICS, LOG_PPLX
from evaluation.results.store import Result, ResultStore
from matquant.checkout import PROJECT
from matquant.config.study import load_study

HEAVY = (
    *("torch", "transformers", "lm_eval", "datasets", "accelerate", "wandb"),
    *("pandas", "matplotlib", "scipy", "numpy", "pyarrow", "nbformat", "IPython", "submitit", "hydra"),
)
"""Libraries that take a tenth of a second or more to import, or that bring such ones along."""

REPORTS = """
import atexit, json, runpy, sys
names, out, (program, *arguments) = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
atexit.register(lambda: open(out, "w").write(json.dumps([name for name in names if name in sys.modules])))
sys.argv = [program, *arguments]
if program.endswith(".py"):
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""
"""A program that runs another one and writes down which of the heavy libraries that has imported."""

RIVAL = "import torch"
TARGET_TORCH_S = 1.7
"""The rival's time on the machine on which the targets were set: they count as ratios to it."""


@dataclass(frozen=True)
class Command:
    """A command that a person types, the heavy libraries it needs with the reasons, and the seconds it may take."""

    name: str
    arguments: Sequence[str]
    target_s: float | None
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> list[str]:
        program, *rest = self.arguments
        return [sys.executable, *(["-m"] if not program.endswith(".py") else []), program, *rest]


COMPOSES = {"hydra": "the command line is composed"}
OPENS_TABLES = {"pyarrow": "tables of documents are opened", "numpy": "pyarrow imports it"}
SKELETON = {
    "torch": "the model is built without weights, for the shapes of its layers",
    "transformers": "the architecture is its",
    "scipy": "transformers imports it for its losses",
    "accelerate": "transformers imports it for devices",
    "numpy": "torch imports it",
}


def commands(overrides: Sequence[str]) -> list[Command]:
    """Everything that is measured, from what needs least to what needs most; `overrides`: those of a finished study."""
    cell = load_study(overrides).cells[-1]
    pair = [f"{cell.id}:int8", f"{cell.id}:int2"]
    (results,) = (text.partition("=")[2] for text in overrides if text.startswith("paths.results="))
    return [
        Command("map", ["matquant", "--help"], 0.3),
        Command("help of launch", ["matquant", "launch", "--help"], 0.3),
        Command("refused: no such option", ["matquant", "faithfulness", "--plan"], 0.3),
        Command("help", ["run.py", "--help"], 1.0, COMPOSES),
        Command("refused: no such key", ["run.py", "base.num_step=1"], 1.5, COMPOSES),
        Command("refused: no such task", ["run.py", "readout.tasks=[piqqa]"], 1.5, COMPOSES),
        Command("status, all done", ["matquant", "status", *overrides], 2.0, COMPOSES),
        Command("launch, all done", ["matquant", "launch", *overrides], 2.0, COMPOSES),
        Command("report, unchanged", ["matquant", "report", "--no-notebook", *overrides], 4.0, COMPOSES),
        Command("second run, nothing to do", ["run.py", *overrides], 4.0, {**COMPOSES, **OPENS_TABLES}),
        Command(
            "compare",
            ["matquant", "compare", *pair, "--results", results],
            3.0,
            {**OPENS_TABLES, "scipy": "McNemar's exact test"},
        ),
        Command(
            "refused: does not divide",
            ["run.py", "model=tiny", "grid=group_128", *(text for text in overrides if text.startswith("paths."))],
            None,
            {**COMPOSES, **SKELETON},
        ),
    ]


def finished_study(folder: Path) -> list[str]:
    """Writes every result of a tiny study, made up, and returns the command line that asks for it."""
    paths = [f"paths.{name}={folder / name}" for name in ("runs", "results", "out", "cache")]
    small = ["model=tiny", "grid=group_32", "data.num_sequences=8", "data.sequence_length=32"]
    overrides = ["experiment=smoke", *small, "readout=smoke", "tracking=none", "device=cpu", *paths]
    study = load_study(overrides)
    store = ResultStore(study.setup.paths.results)
    for cell in study.cells:
        for task, protocol in protocols(study.setup.readout, add_bos=cell.sets_bos).items():
            for plan in study.setup.readout.plans_of(cell):
                # As a real result would be drawn: two documents, of which one is right.
                metric, values = (LOG_PPLX, [3.0, 4.0]) if task == LOG_PPLX else ("acc", [0, 1])
                assert metric in HEADLINE_METRICS
                metrics = {metric: sum(values) / len(values), f"{metric}_stderr": 0.5}
                result = Result(cell.id, str(plan), task, protocol, metrics, len(values), float(plan.bits))
                store.put(result, {"doc_id": [0, 1], metric: values})
    return overrides


def seconds_of(lines: Mapping[str, Sequence[str]], *, repeats: int) -> dict[str, list[float]]:
    """Times of whole processes; they take turns, so that a slow minute of the machine is shared by all."""
    taken: dict[str, list[float]] = {name: [] for name in lines}
    for number in range(repeats + 1):
        for name, line in lines.items():
            start = time.perf_counter()
            subprocess.run(line, cwd=PROJECT, env=_environment(), capture_output=True, check=False)
            if number:  # the first time reads files that are cached from then on
                taken[name].append(time.perf_counter() - start)
    return taken


def imported_by(command: Command, folder: Path) -> set[str]:
    """The heavy libraries that a command has imported by its end."""
    out = folder / "imported.json"
    line = [sys.executable, "-c", REPORTS, json.dumps(HEAVY), str(out), *command.arguments]
    subprocess.run(line, cwd=PROJECT, env=_environment(), capture_output=True, check=False)
    return set(json.loads(out.read_text()))


def _environment() -> dict[str, str]:
    """The variables of a process that is offline, and that imports the checkout's modules before all others."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROJECT)}


def print_times(times: Mapping[str, Sequence[float]], targets: Mapping[str, float | None]) -> None:
    rival = min(times[RIVAL])
    print(f"{'':28} {'best':>7} {'median':>7} {'ratio':>6}  at most")
    for name, taken in times.items():
        ratio, target = min(taken) / rival, targets.get(name)
        verdict = ""
        if target is not None:
            limit = target / TARGET_TORCH_S
            verdict = f"{limit:7.2f}  {'met' if ratio <= limit else 'MISSED'}"
        print(f"{name:28} {min(taken):6.2f}s {statistics.median(taken):6.2f}s {ratio:6.2f}  {verdict}".rstrip())


def print_imports(command: Command, found: set[str]) -> None:
    print(f"\n{command.name}")
    for library in HEAVY:
        if library in found:
            print(f"  {library:14} {command.needs.get(library, 'SURPRISE: nobody has said why')}")
        elif library in command.needs:
            print(f"  {library:14} not imported: the reason is out of date")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure commands with this word in their name")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is started (default: 5)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        overrides = finished_study(Path(name))
        chosen = [
            command
            for command in commands(overrides)
            if not given.words or any(word in command.name for word in given.words)
        ]
        if not chosen:
            names = ", ".join(command.name for command in commands(overrides))
            parser.error(f"no command has {' or '.join(given.words)} in its name; there are: {names}")
        # Not timed: draws the report that later runs find unchanged.
        subprocess.run(
            [sys.executable, "run.py", *overrides], cwd=PROJECT, env=_environment(), capture_output=True, check=True
        )
        lines = {RIVAL: [sys.executable, "-c", "import torch"], **{command.name: command.line for command in chosen}}
        times = seconds_of(lines, repeats=given.repeats)
        print_times(times, {command.name: command.target_s for command in chosen})
        for command in chosen:
            print_imports(command, imported_by(command, Path(name)))


if __name__ == "__main__":
    main()
