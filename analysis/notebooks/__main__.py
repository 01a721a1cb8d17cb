"""Executes the notebooks in place: `python -m analysis.notebooks`."""

from __future__ import annotations

from analysis.notebooks import NOTEBOOKS, execute, read, write


def main() -> None:
    for path in NOTEBOOKS:
        write(execute(read(path)), path)
        print(f"executed {path.name}")


if __name__ == "__main__":
    main()
