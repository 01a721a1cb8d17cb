"""An error in one measurement is a line of its own, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.gpu.lines import Line

LONGEST = 500


def guarded(what: str, measure: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a measurement; if it fails, those that came before, and one that says how."""
    try:
        yield from measure()
    except Exception as error:  # of any kind: nobody knows yet what a GPU does with it
        yield Line(what, failed=in_words(error))


def in_words(error: Exception) -> str:
    """An error in one line, with the innermost place in this project that it went through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "site-packages" not in name:
            place = f" at {'/'.join(name.split('/')[-2:])}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{place}: {' '.join(str(error).split())}"[:LONGEST]
