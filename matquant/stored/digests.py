"""The sha256 of files, each read once for each time that it changes.

A digest is remembered in a folder under the file's path, inode, size and times.  A program can set the time of
modification back, but not the time of change (ctime).  The number of the device is left out: the nodes of a cluster
count their network disks differently, and would read a model once a node.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from matquant.errors import UserError

PIECE = 1 << 24  # bytes
SETTLED_S = 2.0
"""The age at which a file's times are trusted: one that changes twice within a tick of the clock keeps them."""


def digests_of(paths: Iterable[Path], *, memo: Path, what: str) -> dict[Path, str]:
    """The sha256 of each file in hex; `memo` is the folder of digests that are remembered, `what` labels the bar."""
    found, unknown = dict[Path, str](), list[tuple[Path, Path]]()
    for path in paths:
        entry = memo / _entry_of(path)
        if (digest := _remembered(entry)) is None:
            unknown.append((path, entry))
        else:
            found[path] = digest
    if not unknown:
        return found
    total = sum(path.stat().st_size for path, _ in unknown)
    with (
        tqdm(total=total, desc=f"checksum of {what}", unit="B", unit_scale=True, delay=2, disable=None) as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,  # hashlib lets other threads run
    ):
        digests = list(pool.map(lambda one: _read_and_remember(one[0], one[1], bar.update), unknown))
    return {**found, **{path: digest for (path, _), digest in zip(unknown, digests, strict=True)}}


def _entry_of(path: Path) -> str:
    """The name under which a file's digest is remembered, as the file is now."""
    try:
        state = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    facts = (path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()


def _remembered(entry: Path) -> str | None:
    """A digest that was remembered; None for an entry that is absent, unreadable or no digest."""
    try:
        text = entry.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else None


def _read_and_remember(path: Path, entry: Path, advance: Callable[[int], object]) -> str:
    settled = path.stat().st_ctime < time.time() - SETTLED_S
    digest = sha256_of(path, advance)
    if settled and entry.name == _entry_of(path):  # else it has changed meanwhile
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            beside = entry.with_name(f".{entry.name}.{os.getpid()}.tmp")
            beside.write_text(digest)
            beside.replace(entry)
        except OSError:
            pass  # the next process reads the file once more
    return digest


def sha256_of(path: Path, advance: Callable[[int], object]) -> str:
    """The sha256 of a file in hex; `advance` is told of every piece that was read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                advance(len(piece))
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror}); restore it, or make it readable")
