"""Where a cell's files live, how they are written, and under which circumstances they were made.

    runs/<cell id>/  cell.json  train.jsonl  state/ (until done: finished pieces, step-*/)
                     checkpoint/{nested.safetensors,nested.json}
                     plans/ (found by searches)  search/ (what searches go on from)
                     <stage>.status.json  <stage>.job.json  <stage>.lock      stages: train, evaluate, evaluate-1of2 ...

A file is written beside its place and renamed, so a reader, or a process killed in the middle, sees the old file or
the new one and never a part.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from matquant.errors import UserError
from matquant.status import Reporter, process_started, reporting

log = logging.getLogger(__name__)
PROJECT = Path(__file__).resolve().parent.parent
SOURCE = "SOURCE.json"
HOST = socket.gethostname().partition(".")[0]
ABANDONED_S = 600.0
"""How old a temporary file of another machine must be to count as left by a killed process."""
LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "safetensors", "numpy")


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary neighbour of `path`, then renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes what a process killed in the middle of a write beside left; what others are just writing stays."""
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir():  # a training state: whoever is here has the cell to himself
            shutil.rmtree(path, ignore_errors=True)
        elif _is_abandoned(path):
            path.unlink(missing_ok=True)


def _is_abandoned(beside: Path) -> bool:
    """True if the process that a temporary file names is gone; of another machine's, if the file is old."""
    *_, host, pid, _ = beside.name.rsplit(".", 3)
    try:
        written = beside.stat().st_mtime
    except FileNotFoundError:
        return False
    if host != HOST:
        return time.time() - written > ABANDONED_S
    started = process_started(int(pid))
    return started is None or started > written


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically; NaN and infinity are refused rather than written as non-JSON."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_beside(path, lambda beside: beside.write_text(text + "\n"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@cache
def library_versions() -> dict[str, str]:
    """The versions a number depends on, read from package metadata so that nothing is imported for it."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def source_commit() -> dict[str, Any]:
    """The commit of this source tree and whether it had been edited; `unknown` outside a git checkout.

    A snapshot that jobs run from says itself what it was taken from.
    """
    if (PROJECT / SOURCE).is_file():
        return read_json(PROJECT / SOURCE)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": None}


def provenance(*, device: str, seconds: float) -> dict[str, Any]:
    """Who measured this: commit, versions, device, wall-clock seconds and the time of day (UTC)."""
    return {
        **source_commit(),
        "versions": library_versions(),
        "device": device,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class RunDir:
    """The files of one cell.  Every path of a run is spelled here and nowhere else."""

    def __init__(self, root: Path, cell_id: str) -> None:
        self.path = Path(root) / cell_id
        self.cell = self.path / "cell.json"
        self.log = self.path / "train.jsonl"
        self.state = self.path / "state"
        self.checkpoint = self.path / "checkpoint"

    def status(self, stage: str) -> Path:
        """How a stage stands, by the process that runs it (`matquant.status`)."""
        return self.path / f"{stage}.status.json"

    def job(self, stage: str) -> Path:
        """Which job was submitted for a stage, by the launcher."""
        return self.path / f"{stage}.job.json"

    def plan(self, label: str) -> Path:
        """The widths that a search has found, which a read-out can name by this path."""
        return self.path / "plans" / f"{label}.json"

    def search(self, name: str) -> Path:
        """What a search for a plan has measured or found so far."""
        return self.path / "search" / f"{name}.json"

    @contextmanager
    def alone(self, stage: str) -> Iterator[None]:
        """Keeps other processes out of a stage, and waits for one that is in it; a killed process leaves no lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / f"{stage}.lock")
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
        with self.log.open("a") as file:
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


def require_writable(folder: Path, option: str) -> None:
    """Refuses, before anything is computed, a folder that results cannot be written to."""
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); set {option} to a folder you can write to"
        ) from error
