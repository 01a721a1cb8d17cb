"""Checks the published numbers against themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis import published
from matquant.command.parsing import parse

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 if there is a problem."""
    parse("published", arguments)
    frame = published.load()
    found = published.problems()
    known = frame[frame["error"] != ""]
    print(f"{len(frame)} numbers; {len(published.averages(frame))} printed averages compared with their six tasks")
    for row in known.to_dict("records"):
        place = f"{row['model']} {row['method']} {row['width']} {row['metric']}"
        print(f"known error, Table {row['table']}: {place} {row['value']}: {row['error']}")
    for problem in found:
        print(f"problem: {problem}")
    return 1 if found else 0
