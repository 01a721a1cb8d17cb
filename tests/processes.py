"""Processes that tests start, and how tests wait for them: for events, never for a number of seconds.

Starting Python, torch, transformers and lm_eval takes five seconds.  A test that is not about the start forks a process
that has imported them all (`tests/fork_server.py`); the fork has its own command line, folder, variables and streams.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from matquant.checkout import PROJECT

log = logging.getLogger(__name__)
HUNG_S = 1500.0
"""Seconds after which a test stops waiting: more than a busy machine needs, and less than pytest's own limit."""
POLL_S = 0.02
MARK = "MATQUANT_TEST_PROCESS"
"""The variable by which the processes of this test process are known, however they were started."""


def variables() -> dict[str, str]:
    """The variables of a process: one thread, so that neither the machine nor its load decides how sums are grouped.

    Byte code is kept: every snapshot of a launch would be compiled again by each of its workers.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def wait_until(
    happened: Callable[[], object], what: str, *, by: Process | None = None, told: Callable[[], str] = str
) -> None:
    """Waits for an event; fails if the process that should bring it about has ended, or, much later, all the same.

    `told` gives more for the message of a failure, such as the states of a sweep and the ends of its logs.
    """
    log.info("waits for %s", textwrap.shorten(what, 160))
    limit = time.monotonic() + HUNG_S
    while not happened():
        over = by is not None and by.poll() is not None
        if over and happened():
            return
        if over or time.monotonic() > limit:
            ended = f", but it has ended with {by.returncode}" if by is not None and over else f" for {HUNG_S:.0f} s"
            raise AssertionError(f"waited for {what}{ended}\n{by.told() if by else ''}\n{told()}")
        time.sleep(POLL_S)


class Process:
    """A fork of the server, with the methods of Popen; its streams are files."""

    def __init__(self, server: _Server, pid: int, folder: Path, arguments: Sequence[str]) -> None:
        self.server, self.pid, self.folder, self.args = server, pid, folder, list(arguments)
        self.returncode: int | None = None

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.status(self.pid)
        return self.returncode

    def wait(self) -> int:
        wait_until(lambda: self.poll() is not None, f"the end of {' '.join(self.args)}", told=self.told)
        assert self.returncode is not None
        return self.returncode

    def check(self) -> Process:
        """Waits for the process, and fails if its exit status is not 0."""
        assert self.wait() == 0, self.told()
        return self

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def told(self) -> str:
        """The ends of its streams."""
        return f"{' '.join(self.args)}:\n{self.stdout[-2000:]}\n{self.stderr[-4000:]}"


class _Server:
    """The process that forks, started by the first who needs it; it ends with this process."""

    def __init__(self) -> None:
        self.folder = TemporaryDirectory(prefix="forks-")
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
            cwd=PROJECT,
            env={**variables(), "PYTHONPATH": str(PROJECT)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.messages, self.socket = ours.makefile("r"), ours
        self.ended: dict[int, int] = {}
        self.started: dict[int, str] = {}

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, *, apart: bool, deaf: bool
    ) -> Process:
        folder = Path(self.folder.name) / str(len(self.started))
        folder.mkdir()
        for name in ("stdout", "stderr"):  # to be read before the fork has come to open them
            (folder / name).touch()
        order = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "cwd": str(cwd),
            "folder": str(folder),
            "apart": apart,
            "deaf": deaf,
        }
        self.socket.sendall(json.dumps(order).encode() + b"\n")
        while "pid" not in (said := self._next()):
            self.ended[said["ended"]] = said["status"]
        self.started[said["pid"]] = f"{' '.join(arguments)} ({os.environ.get('PYTEST_CURRENT_TEST')})"
        return Process(self, said["pid"], folder, arguments)

    def status(self, pid: int) -> int | None:
        """The exit status of a fork that has ended."""
        if pid not in self.ended:
            self.socket.sendall(b"{}\n")  # asks for the forks that have ended; the answer ends with an empty object
            while said := self._next():
                self.ended[said["ended"]] = said["status"]
        return self.ended.get(pid)

    def _next(self) -> dict:
        line = self.messages.readline()
        assert line, f"the fork server has ended with {self.process.poll()}"
        return json.loads(line)

    def stop(self) -> None:
        self.messages.close()
        self.socket.close()  # at which it ends what it has started, and itself
        self.process.wait()
        self.folder.cleanup()


@cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.stop)
    return server


def fork(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path = PROJECT,
    apart: bool = False,
    deaf: bool = False,
) -> Process:
    """Starts `python ARGUMENTS`, a script or `-m` and a module, as a fork of what is imported already.

    `apart`: in a process group of its own, as a terminal starts it; `deaf`: without ears for SIGINT, as `&` in a script
    starts it.
    """
    chosen = variables() if environment is None else environment
    return _server().start(arguments, chosen, cwd, apart=apart, deaf=deaf)


def python(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` from its very start to its end, in the project's folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=variables() if environment is None else dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def left_behind() -> dict[int, str]:
    """The processes that tests of this process have started and that have not ended, each with its test."""
    server = _server() if _server.cache_info().currsize else None
    found: dict[int, str] = {}
    for process in psutil.process_iter():
        try:
            environment, pid = process.environ(), process.pid
            if environment.get(MARK) != str(os.getpid()) or pid == os.getpid():
                continue
            if server is None or pid not in (server.process.pid, *server.started):
                found[pid] = f"{pid} {' '.join(process.cmdline())} ({environment.get('PYTEST_CURRENT_TEST')})"
            elif server.status(pid) is None and pid != server.process.pid:
                found[pid] = f"{pid} {server.started[pid]}"
        except psutil.Error:
            continue
    return found


def only_sentence(stderr: str) -> str:
    """The one sentence that a mistake costs; a slow machine may say before it what is looked at."""
    (sentence,) = [line for line in stderr.strip().splitlines() if not line.startswith("looking at ")]
    return sentence
