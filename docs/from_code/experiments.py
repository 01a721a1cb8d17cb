"""The list of experiments, each with its claim."""

from __future__ import annotations

from docs.from_code.markdown import code, table
from matquant.config.syntax.listing import described


def experiments(folder: str) -> str:
    """The experiments of a folder below conf/experiment/ (`.`: those in none), each with the line it is known by."""
    found = [one for one in described("experiment") if (one.name.rpartition("/")[0] or ".") == folder]
    return table(("experiment", "claim"), ((code(one.name), one.line) for one in found))
