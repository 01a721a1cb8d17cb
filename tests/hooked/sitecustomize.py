"""Kills and holds at planned moments, in every Python process that a test starts (`tests/moments.py` writes the plan).

Python imports this by its name when it starts, from PYTHONPATH.  It listens to audit events: a file is opened to be
read or written, a file is renamed, a module is imported.  The plan is a folder, named by MATQUANT_MOMENTS:

    00.json 01.json ...   moments to come, in this order: only the first of those left can happen
    00.taken              the processes that were killed, or the one that is held
    00.go                 the held one goes on
    alive/ROLE-PID-START  the processes that take part, as long as they live

The standard library alone, and little of it: it is there before everything else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

FOLDER = "MATQUANT_MOMENTS"
OWNER = "MATQUANT_MOMENTS_OWNER"
ROLES = {
    "launch": "launcher",
    "submitit.local._local": "controller",
    "submitit.core._submit": "worker",
    "run.py": "run",
}
POLL_S = 0.02


def started(pid: int) -> str | None:
    """The start time of a process, in the kernel's ticks; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Listener:
    """The audit hook of one process."""

    def __init__(self, folder: str, role: str) -> None:
        self.folder, self.role = folder, role
        self.busy, self.current, self.count = False, "", 0
        self.moment: dict = {}
        open(os.path.join(folder, "alive", f"{role}-{os.getpid()}-{started(os.getpid())}"), "w").close()

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "import") or self.busy:
            return
        self.busy = True
        try:
            happened = self._words(event, arguments)
            if happened is not None and self._is_due(*happened):
                self._act(arguments)
        finally:
            self.busy = False

    @staticmethod
    def _words(event: str, arguments: tuple) -> tuple[str, str] | None:
        """The kind of an event and its path or module."""
        if event == "import":
            return event, arguments[0]
        if event == "os.rename":
            return "rename", os.fsdecode(arguments[1])
        path, mode, _ = arguments
        if isinstance(path, int) or not isinstance(mode, str):
            return None
        return "write" if set(mode) & set("wax+") else "read", os.fsdecode(path)

    def _is_due(self, kind: str, name: str) -> bool:
        """True if this event is the current moment: the count of its kind starts again after every moment."""
        waiting = sorted(name for name in os.listdir(self.folder) if name.endswith(".json"))
        if not waiting:
            return False
        if waiting[0] != self.current:
            try:
                with open(os.path.join(self.folder, waiting[0])) as file:
                    self.moment = json.load(file)
            except FileNotFoundError:  # another process has taken it just now
                return False
            self.current, self.count = waiting[0], 0
        wanted = self.moment
        if wanted["role"] != self.role or kind not in wanted["events"] or not re.search(wanted["path"], name):
            return False
        self.count += 1
        return self.count >= wanted["count"]

    def _act(self, arguments: tuple) -> None:
        moment, number = self.moment, self.current.partition(".")[0]
        others = [role for role in moment["victims"] if role != self.role]
        # A launcher that is to be killed may not have been started again yet.
        self._wait(lambda: "launcher" not in others or self._alive("launcher"))
        try:
            os.rename(os.path.join(self.folder, self.current), os.path.join(self.folder, f"{number}.mine"))
        except FileNotFoundError:  # another process was quicker
            return
        if moment["half"]:
            self._write_half(arguments)
        killed = [(role, pid) for role in others for pid in self._alive(role) if pid != os.getpid()]
        for _, pid in killed:
            os.kill(pid, signal.SIGKILL)
        self._wait(lambda: not any(started(pid) for _, pid in killed))
        if moment["hold"] or self.role in moment["victims"]:
            killed.append((self.role, os.getpid()))
        self._say(number, killed)
        if moment["hold"]:
            self._wait(lambda: os.path.exists(os.path.join(self.folder, f"{number}.go")))
        elif self.role in moment["victims"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def _say(self, number: str, processes: list[tuple[str, int]]) -> None:
        mine = os.path.join(self.folder, f"{number}.mine")
        with open(mine, "w") as file:
            json.dump(processes, file)
        os.rename(mine, os.path.join(self.folder, f"{number}.taken"))

    @staticmethod
    def _write_half(arguments: tuple) -> None:
        """Cuts the file that is being renamed or appended to, as a kill in the middle of writing does."""
        if len(arguments) == 3:
            with open(arguments[0], "a") as file:
                file.write('{"block": 0, "st')
        else:
            os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)

    def _alive(self, role: str) -> list[int]:
        found = (name.split("-") for name in os.listdir(os.path.join(self.folder, "alive")))
        return [int(pid) for kind, pid, start in found if kind == role and started(int(pid)) == start]

    @staticmethod
    def _wait(happened) -> None:
        """Waits until the test lets this process go on, or has ended."""
        pid, _, start = os.environ[OWNER].partition("-")
        while not happened():
            if started(int(pid)) != start:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(POLL_S)


def role_of(words: list[str]) -> str | None:
    """The part that a command line plays: `python -m matquant launch ...` is a launcher."""
    return next((ROLES[word] for word in words if word in ROLES), None)


def listen(words: list[str]) -> None:
    """Begins to listen, if there is a plan and this command line has a part in it."""
    folder, role = os.environ.get(FOLDER), role_of(words)
    if folder and role:
        sys.addaudithook(Listener(folder, role))


def _next_one() -> None:
    """Runs the sitecustomize that this one hides, if the machine has one."""
    here = os.path.dirname(os.path.abspath(__file__))
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != here])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


if __name__ == "sitecustomize":
    _next_one()
    listen(sys.orig_argv[1:4])
