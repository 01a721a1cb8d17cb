"""Moments at which processes of a sweep are killed or held: planned by a test, carried out by the processes themselves.

A test that waits for a moment from outside depends on how fast the machine is; a process that stops itself when it
opens or renames a certain file does not (`tests/hooked/sitecustomize.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.hooked.sitecustomize import FOLDER, OWNER, started
from tests.processes import Process, wait_until

HOOKED = Path(__file__).parent / "hooked"
BLOCK = r"/state/[^/]*\.safetensors$"
"""A finished block, renamed into place."""
STEP = r"/train\.jsonl$"
"""The line of a step, appended to the log."""
RESULT = r"/results/[^/]*/[^/]*/[^/]*\.json$"


@dataclass(frozen=True)
class Moment:
    """The `count`-th event of a process: it opens a file to read or write it, renames one, or imports a module.

    `victims` are the roles of the processes to kill then (its own, others, or both).  `half` leaves half of the file.
    `hold` lets the process wait until the test lets it go on.  Without any of them the moment is only recorded.
    """

    role: str
    path: str = "."
    count: int = 1
    events: tuple[str, ...] = ("write", "rename")
    victims: tuple[str, ...] = ()
    half: bool = False
    hold: bool = False

    @property
    def in_words(self) -> str:
        return f"{' or '.join(self.events)} number {self.count} of {self.path} by the {self.role}"


class Plan:
    """The moments of one sweep, in the order in which they happen."""

    def __init__(self, folder: Path, moments: Sequence[Moment] = ()) -> None:
        self.folder = folder
        self.moments: list[Moment] = []
        (folder / "alive").mkdir(parents=True)
        self.add(*moments)

    def add(self, *moments: Moment) -> None:
        for moment in moments:
            beside = self.folder / "next"
            beside.write_text(json.dumps(asdict(moment)))
            beside.rename(self.folder / f"{len(self.moments):02d}.json")
            self.moments.append(moment)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that make a process, and those it starts, take part."""
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        owner = f"{os.getpid()}-{started(os.getpid())}"
        return {
            "PYTHONPATH": os.pathsep.join([str(HOOKED), *others]),
            FOLDER: str(self.folder),
            OWNER: owner,
        }

    def left(self) -> int:
        """The number of moments that have not come yet."""
        return len(list(self.folder.glob("*.json")))

    def taken(self) -> list[list[str]]:
        """For every moment that has come, the roles of the processes that it stopped."""
        return [[role for role, _ in json.loads(path.read_text())] for path in sorted(self.folder.glob("*.taken"))]

    def alive(self, *roles: str) -> list[int]:
        """The processes that take part and have not ended."""
        found = [path.name.split("-") for path in (self.folder / "alive").iterdir()]
        return [int(pid) for role, pid, start in found if role in roles and started(int(pid)) == start]

    def wait_for(self, number: int = 0, *, by: Process | None = None, told: Callable[[], str] = str) -> None:
        """Waits until a moment has come: until a process is held there, or its victims have been killed."""
        path = self.folder / f"{number:02d}.taken"
        wait_until(path.exists, f"moment {number} of {self.folder}: {self.moments[number].in_words}", by=by, told=told)

    def go_on(self, number: int = 0) -> None:
        """Lets the process that is held go on."""
        (self.folder / f"{number:02d}.go").touch()

    def wait_for_end(self, *roles: str) -> None:
        """Waits until no process of these roles is left."""
        wait_until(lambda: not self.alive(*roles), f"the end of every {' and '.join(roles)} of {self.folder}")
