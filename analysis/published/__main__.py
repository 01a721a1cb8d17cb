"""Checks the published numbers against themselves: `python -m analysis.published`."""

from __future__ import annotations

import sys

from analysis import published


def main() -> int:
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


if __name__ == "__main__":
    sys.exit(main())
