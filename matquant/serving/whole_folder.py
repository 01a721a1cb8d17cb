"""Folders that are whole or not there: written beside their place, and renamed."""

from __future__ import annotations

import glob
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matquant.disk import CLOSED, writing
from matquant.errors import UserError
from matquant.runs.files import HOST, is_abandoned, let_others_read


def require_free(folder: Path) -> None:
    """Refuses, before anything is computed, a folder that holds something already."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        # What is typed in haste is not `rm -r .`: only a folder that may be meant as the place of an export is named.
        here = Path.cwd()
        is_ours = not folder.is_mount() and here != folder.absolute() and not here.is_relative_to(folder.resolve())
        is_ours = is_ours and (folder.is_dir() or folder.is_file() or folder.is_symlink())
        delete = f", or delete it first: rm -r {shlex.quote(str(folder))}" if is_ours else ""
        raise UserError(f"{folder} is there already; name a new folder{delete}")


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes its name when everything in it is written; after an error nothing is left."""
    require_free(folder)
    beside = folder.with_name(f".{folder.name}.{HOST}.{os.getpid()}.tmp")
    try:
        _make(beside, folder)
        for left in set(folder.parent.glob(f".{glob.escape(folder.name)}.*.*.tmp")) - {beside}:
            if is_abandoned(left):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        with writing(folder):
            yield beside
            for path in beside.rglob("*"):
                let_others_read(path)
            require_free(folder)  # another export may have finished there meanwhile
            os.rename(beside, folder)  # onto an empty folder at most: the system refuses any other
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _make(beside: Path, folder: Path) -> None:
    """Makes the folder to write in; UserError where there can be none."""
    try:
        with writing(folder):
            beside.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise UserError(f"no folder can be made at {folder} ({error.strerror}); name another place") from error
    except OSError as error:
        if error.errno in CLOSED:
            raise UserError(f"{CLOSED[error.errno].format(path=folder)}; name another place") from error
        raise
