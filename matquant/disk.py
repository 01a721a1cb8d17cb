"""A disk that is full, or closed to this user: the error of any library becomes one sentence with the path.

Python, safetensors, arrow and torch each say it in their own way, some without the path and some without a number.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from matquant.errors import DiskFullError, UserError

FOLDERS = ("runs", "results", "out", "cache")
"""The keys under `paths`."""

FULL = {
    errno.ENOSPC: "no space left on {path}",
    errno.EDQUOT: "the disk quota is used up at {path}",
    errno.EFBIG: "{path} became larger than this process may write (ulimit -f)",
}
CLOSED = {
    errno.EROFS: "{path} is on a read-only disk",
    errno.EACCES: "no permission for {path}",
    errno.EPERM: "no permission for {path}",
}


def number_of(error: BaseException) -> int | None:
    """The number of a failed write in `FULL` or `CLOSED`, whichever library raised it; None for any other error."""
    return next((number for number in map(_number, _causes(error)) if number is not None), None)


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in FULL | CLOSED:
        return error.errno
    # safetensors, arrow and torch have words instead of numbers.
    said = str(error)
    return next((number for number in (*FULL, errno.EROFS) if os.strerror(number) in said), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those before it, each once: one that is raised again while it is handled comes before itself."""
    seen: set[int] = set()
    earlier: BaseException | None = error
    while earlier is not None and id(earlier) not in seen:
        seen.add(id(earlier))
        yield earlier
        earlier = earlier.__cause__ or earlier.__context__


def is_full(error: BaseException) -> bool:
    """True if there was no room for a write."""
    return isinstance(error, DiskFullError) or number_of(error) in FULL


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Gives the error of a failed write the path that it was for."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any kind: each library has its own
        number = number_of(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def in_words(folders: Mapping[str, Path] = MappingProxyType({})) -> Iterator[None]:
    """Turns a write that failed for its disk into one sentence; `folders`: those under `paths`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any kind: each library has its own
        number, path = number_of(error), _path_of(error)
        if number in FULL:
            raise DiskFullError(
                f"{FULL[number].format(path=path or 'a disk')}: make room, and the same command goes on where this one "
                f"stopped; or set {_key_of(path, folders)} to a disk with room"
            ) from error
        if number in CLOSED and path is not None:
            raise UserError(
                f"{CLOSED[number].format(path=path)}: change that, or "
                f"set {_key_of(path, folders)} to a folder that you can write to"
            ) from error
        raise


def _path_of(error: BaseException) -> str | None:
    named = (one.filename for one in _causes(error) if isinstance(one, OSError) and one.filename is not None)
    return next(map(os.fsdecode, named), None)


def _key_of(path: str | None, folders: Mapping[str, Path]) -> str:
    """The key of the folder that a path lies in; all of them where that is not known."""
    if path is not None:
        place = Path(path).absolute()
        for name, folder in folders.items():
            if place.is_relative_to(folder.absolute()):
                return f"paths.{name}"
    *names, last = (f"paths.{name}" for name in FOLDERS)
    return f"{', '.join(names)} or {last}"
