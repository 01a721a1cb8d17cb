"""Folders that are whole or not there: written beside their place, and renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matquant.disk import writing
from matquant.errors import UserError


def require_free(folder: Path) -> None:
    """Refuses, before anything is computed, a folder that holds something already."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already; name a new folder, or delete it first: rm -r {folder}")


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes its name when everything in it is written; after an error nothing is left."""
    require_free(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with writing(folder):
            beside.mkdir()
            yield beside
            if folder.is_dir():
                folder.rmdir()
            os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
