"""Measurements that fail alone: an error in one is a line, and the others go on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator

import torch

from benchmarks.gpu.lines import Line

LONGEST = 500
"""Characters of an error that are shown."""


def guarded(what: str, measure: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """The lines of a measurement as they come; an error ends it with a line that says so."""
    try:
        yield from measure()
    except Exception as error:  # of any kind: nobody knows yet what a GPU does, and the others are still worth having
        yield Line(what, failed=sentence(error))
    # After the handler, since an error holds the tensors of all functions that it went through.
    free()


def free() -> None:
    """Gives a GPU's memory back that nothing uses; elsewhere nothing is counted."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def sentence(error: BaseException) -> str:
    """An error in one line, with the innermost place in this project that it went through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "site-packages" not in name:
            place = f" at {'/'.join(name.split('/')[-2:])}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{place}: {' '.join(str(error).split())}"[:LONGEST]
