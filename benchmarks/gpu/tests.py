"""The suite's `device` tests on this device, by pytest in a process of its own.

    python -m benchmarks.gpu.tests --device cuda            those that name the device, of every test file
    python -m benchmarks.gpu.tests --device cpu --small     those of one file

Only files in which a test takes `device` are collected.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.lines import Line, Scale, run_part
from matquant.checkout import PROJECT

FOLDER = PROJECT / "tests"
SMALL = "test_slicing.py"
TAKES_DEVICE = re.compile(r"^def (?:test_\w+\([^)]*|\w+\((?:request, )?)\bdevice\b", re.MULTILINE)
"""A test, or a fixture for tests, with the `device` of tests/conftest.py among its arguments."""
SIDE_BY_SIDE = 8
LIMIT_S = 125
"""Seconds after which pytest is ended: before the check ends this part, so that it can say what was found."""
LAST_WORDS = 400


@dataclass(frozen=True)
class Case:
    """One test that ran: its name, and in words what is wrong with it."""

    name: str
    failed: str = ""
    skipped: str = ""


def tests(scale: Scale) -> Iterator[Line]:
    """The number of tests that passed, and a line for each that did not."""
    name = SMALL if scale.small else "*.py"
    files = [path for path in sorted(FOLDER.rglob(name)) if TAKES_DEVICE.search(path.read_text(encoding="utf-8"))]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        said = _run(_command(files, report, kind=scale.device.type, alone=scale.small))
        cases = list(read(report)) if report.exists() else []
    yield from lines(cases, said)


def _command(files: Sequence[Path], report: Path, *, kind: str, alone: bool) -> list[str]:
    """pytest on the tests of one kind of device, with those of its plugins that are installed."""
    command = [sys.executable, "-m", "pytest", *map(str, files), "-k", f"[{kind}", f"--junitxml={report}", "-v"]
    # A warning is no failure here: libraries of another version, or of a GPU, have warnings of their own.
    command += ["-p", "no:benchmark", "-p", "no:cacheprovider", "-W", "default", "--durations=3"]
    if not alone and find_spec("xdist"):
        command += ["-n", str(SIDE_BY_SIDE)]
    return command + (["--timeout=120"] if find_spec("pytest_timeout") else [])


def _run(command: Sequence[str]) -> str:
    """Runs pytest and returns what it said; whatever comes of it."""
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return f"{said.decode(errors='replace') if isinstance(said, bytes) else said}\nended after {LIMIT_S} s"
    return done.stdout


def read(report: Path) -> Iterator[Case]:
    """The tests of a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        wrong = [mark for mark in case if mark.tag in ("failure", "error")]
        skipped = next((mark.get("message", "skipped") for mark in case if mark.tag == "skipped"), "")
        yield Case(name, "; ".join(map(_last_assertion, wrong)), skipped)


def _last_assertion(mark: ElementTree.Element) -> str:
    """The last of the lines that pytest marks as the error, or its message."""
    marked = [line[1:].strip() for line in (mark.text or "").splitlines() if line.startswith("E ")]
    first = next((line for line in marked if line), "")
    words = [first, marked[-1]] if marked and marked[-1] != first else [first]
    return " ... ".join(filter(None, words))[:LAST_WORDS] or mark.get("message", mark.tag)[:LAST_WORDS]


def lines(cases: Sequence[Case], said: str) -> Iterator[Line]:
    """The counts and failures of a run of pytest."""
    wrong, skipped = ([case for case in cases if getattr(case, name)] for name in ("failed", "skipped"))
    passed = len(cases) - len(wrong) - len(skipped)
    note = f"{len(wrong)} failed, {len(skipped)} skipped"
    if cases:
        yield Line("passed", passed, "tests", len(cases), "run", note, "" if passed else "no test passed")
    else:
        yield Line(
            "passed", said.count(" PASSED "), "tests", failed=f"pytest made no report: {said.strip()[-LAST_WORDS:]}"
        )
        for test in re.findall(r"FAILED (\S+)", said):
            yield Line(test, failed="failed; pytest was ended before it could say how")
    for case in wrong:
        yield Line(case.name, failed=case.failed)
    for reason in sorted({case.skipped for case in skipped}):
        yield Line("skipped", sum(case.skipped == reason for case in skipped), "tests", note=reason)


def main() -> None:
    run_part(tests, __doc__)


if __name__ == "__main__":
    main()
