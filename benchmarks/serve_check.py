"""Every export opened by the engine it is for: all round trips of `benchmarks/engines`, one after the other.

    make serve-check                                   all of them; the first time installs engines (minutes each)
    python -m benchmarks.serve_check llama_cpp         only those that are named

Each engine runs in an environment of its own.  One that cannot be installed here is skipped by name.  The exit status
is 1 if one that is installed disagrees with what was exported, or fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

ENGINES = Path(__file__).parent / "engines"
MAIN = re.compile(r"^def main\(", re.MULTILINE)
SKIPPED = "skipped: "
"""The beginning of the line in which a round trip says that its engine is not there (`engines.environment`)."""


class Outcome(StrEnum):
    """The outcome of one round trip."""

    AGREES = "agrees"
    SKIPPED = "skipped"
    DISAGREES = "DISAGREES"


def round_trips(folder: Path = ENGINES) -> list[str]:
    """The names of all round trips: the modules with a `main`."""
    return sorted(path.stem for path in folder.glob("*.py") if MAIN.search(path.read_text(encoding="utf-8")))


def outcome_of(status: int, lines: Sequence[str]) -> Outcome:
    """A skipped engine is no failure, and a failure is never hidden by another engine that was skipped."""
    if status:
        return Outcome.DISAGREES
    return Outcome.SKIPPED if any(line.startswith(SKIPPED) for line in lines) else Outcome.AGREES


def run(command: Sequence[str]) -> tuple[Outcome, str]:
    """Runs one round trip and prints what it says as it says it; returns its last word on why it was skipped."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as done:
        assert done.stdout is not None
        lines = list(_printed(done.stdout))
    reasons = [line.removeprefix(SKIPPED) for line in lines if line.startswith(SKIPPED)]
    return outcome_of(done.returncode, lines), "; ".join(reasons)


def _printed(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        print(f"  {line}", end="", flush=True)
        yield line.rstrip("\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="ENGINE", help=f"of {', '.join(round_trips())} (default: all)")
    names = parser.parse_args(arguments).names
    if unknown := [name for name in names if name not in round_trips()]:
        parser.error(f"there is no engine {unknown[0]}; there are: {', '.join(round_trips())}")
    found = {}
    for name in names or round_trips():
        print(name, flush=True)
        found[name] = run([sys.executable, "-u", "-m", f"benchmarks.engines.{name}"])
    print()
    for name, (outcome, reason) in found.items():
        print(f"{name:20} {outcome}{f': {reason}' if reason else ''}")
    return 1 if any(outcome is Outcome.DISAGREES for outcome, _ in found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
