"""Executes the notebooks in place: `python -m analysis.notebooks`, or some of them: `... 1_tables`."""

from __future__ import annotations

import sys

from analysis.notebooks import NOTEBOOKS
from analysis.report.notebook import execute, read, write


def main(names: list[str]) -> None:
    if unknown := sorted({*names} - {path.stem for path in NOTEBOOKS}):
        sys.exit(f"error: there is no notebook {unknown[0]}; there are {', '.join(path.stem for path in NOTEBOOKS)}")
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            write(execute(read(path)), path)
            print(f"executed {path.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
