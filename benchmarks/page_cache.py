"""The bytes of files that a process has read, counted by the kernel: pages that are in memory and were not before.

A file is forgotten first, whoever had read it.  Then whatever reads it, mapped or not, leaves its pages behind, and
nothing else does.  Linux only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path


def forget(files: Iterable[Path]) -> None:
    """Lets the kernel drop files from memory, after they are safe on disk."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def bytes_in_memory(files: Iterable[Path]) -> int:
    """The bytes of files that the kernel holds in memory."""
    return sum(map(_bytes_in_memory, files))


def _bytes_in_memory(path: Path) -> int:
    size = path.stat().st_size
    if not size:
        return 0
    kernel = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        held = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        status = kernel.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), held)
        del first  # the mapping is closed only after the last that points into it
        if status:
            raise OSError(ctypes.get_errno(), f"the kernel does not say what it holds of {path}")
        return min(size, mmap.PAGESIZE * sum(page & 1 for page in held))
