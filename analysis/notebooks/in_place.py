"""Executes the committed notebooks in place."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.notebooks import NOTEBOOKS
from analysis.report.notebook import execute, read, write
from matquant.command.parsing import parse
from matquant.errors import UserError


def main(arguments: Sequence[str]) -> None:
    names = parse("notebooks", arguments).names
    if unknown := sorted({*names} - {path.stem for path in NOTEBOOKS}):
        raise UserError(f"there is no notebook {unknown[0]}; there are {', '.join(path.stem for path in NOTEBOOKS)}")
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            write(execute(read(path)), path)
            print(f"executed {path.name}")
