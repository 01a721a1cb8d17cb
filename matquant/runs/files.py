"""Files that are whole or not there: each is written beside its place and renamed.

A reader, or a process killed in the middle, sees the old file or the new one and never a part.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matquant.disk import writing
from matquant.errors import UserError
from matquant.runs.processes import process_started

HOST = socket.gethostname().partition(".")[0]
ABANDONED_S = 600.0
"""The age at which a temporary file of another machine counts as left by a killed process."""


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary neighbour of `path`, then renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        with writing(path):
            write(beside)
            let_others_read(beside)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def let_others_read(path: Path) -> None:
    """Gives a file that is closed to others the permissions that new files have here (umask).

    safetensors writes for its own user alone, and a folder of results is often one of several people.
    """
    if not path.is_file() or path.stat().st_mode & 0o077:
        return
    probe = path.with_name(f".{path.name}.mode.{HOST}.{os.getpid()}.tmp")
    probe.touch()
    shutil.copymode(probe, path)
    probe.unlink()


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files that killed processes left; those that other processes are writing stay."""
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir():  # a training state: only the holder of the training's lock writes one
            shutil.rmtree(path, ignore_errors=True)
        elif is_abandoned(path):
            path.unlink(missing_ok=True)


def is_abandoned(beside: Path) -> bool:
    """True if the process that a temporary file names is gone; on another machine, if the file is old."""
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
