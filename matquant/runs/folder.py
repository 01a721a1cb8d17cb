"""The folder of a cell's run.  Every path of a run is spelled here and nowhere else.

runs/<cell id>/  cell.json  sources.json  train.jsonl  training.json  state/ (until done: finished pieces, step-*/)
                 checkpoint/{nested.safetensors,nested.json}
                 plans/ (found by searches)  search/ (what searches go on from)
                 <stage>.status.json  <stage>.job.json  <stage>.lock      stages: train, search, evaluate,
                                                                          evaluate-1of2 ...
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from matquant.disk import writing
from matquant.errors import UserError
from matquant.runs.files import write_beside
from matquant.runs.status import Reporter, reporting

log = logging.getLogger(__name__)
SHARED = 0o666
"""The permissions of a lock: it holds nothing, and everybody who may write to its folder may wait for it."""


class RunDir:
    """The files of one cell."""

    def __init__(self, root: Path, cell_id: str) -> None:
        self.path = Path(root) / cell_id
        self.cell = self.path / "cell.json"
        self.sources = self.path / "sources.json"
        self.log = self.path / "train.jsonl"
        self.training = self.path / "training.json"
        self.state = self.path / "state"
        self.checkpoint = self.path / "checkpoint"
        self.description = self.checkpoint / "nested.json"
        self.plans = self.path / "plans"
        self.searches = self.path / "search"

    def status(self, stage: str) -> Path:
        """The status of a stage, by the process that runs it (`matquant.runs.status`)."""
        return self.path / f"{stage}.status.json"

    def job(self, stage: str) -> Path:
        """The job that the launcher submitted for a stage."""
        return self.path / f"{stage}.job.json"

    def plan(self, label: str) -> Path:
        """The widths that a search has found, which a read-out can name by this path."""
        return self.plans / f"{label}.json"

    def search(self, name: str) -> Path:
        """The measurements and findings of a search for a plan, so far."""
        return self.searches / f"{name}.json"

    def require_trained(self) -> None:
        """Refuses a cell that has no checkpoint yet."""
        if not self.description.exists():
            raise UserError(
                f"cell {self.path.name} is not trained yet; run it with `matquant run` and the same overrides first"
            )

    @contextmanager
    def alone(self, stage: str) -> Iterator[None]:
        """Keeps other processes out of a stage, and waits for one that is in it; a killed process leaves no lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / f"{stage}.lock", mode=SHARED)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("%s: another process is at work on this cell (%s); waiting for it", self.path.name, stage)
            lock.acquire(poll_interval=0.5)
        try:
            yield
        finally:
            lock.release()

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Adds one line to train.jsonl: a step, its losses per slice, whatever the algorithm reports."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.log), self.log.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def rewind_log(self, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drops log lines of work that will be repeated, so that a resumed run leaves the log of an undisturbed one."""
        if self.log.exists():
            kept = [
                line
                for line in self.log.read_text().splitlines(keepends=True)
                if _whole(line) and keep(json.loads(line))
            ]
            write_beside(self.log, lambda beside: beside.write_text("".join(kept)))

    def training_state(self, step: int) -> Path:
        """The folder of the state after a number of steps, written beside and renamed when it is complete."""
        return self.state / f"step-{step:08d}"

    def training_states(self) -> list[Path]:
        """The complete ones, oldest first."""
        return sorted(path.parent for path in self.state.glob("step-*/.metadata"))

    def clear_state(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)

    @contextmanager
    def stage(self, stage: str) -> Iterator[Reporter]:
        """Keeps the status of a stage true while it runs: running, then done, stopped, or failed with the reason."""
        with reporting(self.status(stage)) as reporter:
            yield reporter


def _whole(line: str) -> bool:
    """False for the last line of a log that was cut short by a kill."""
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def removal(places: Sequence[Path], unpack: Path | None) -> str:
    """The command that removes folders, which `unpack`, a folder of packed results, may hold some of."""
    first = "" if unpack is None else f"matquant pack {shlex.quote(str(unpack))} --unpack && "
    return f"{first}rm -r {shlex.join(map(str, places))}"
