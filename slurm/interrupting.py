"""Stops processes of this machine: asks them with SIGINT, as Ctrl-C does, waits, and ends by force what goes on."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PATIENCE_S = 30.0
"""Seconds that a job has to end after a SIGINT."""
LAST_S = 3.0
"""Seconds between SIGTERM and SIGKILL."""
POLL_S = 0.05


def stop_jobs(controllers: Iterable[int]) -> None:
    """Stops the tasks of some of submitit's controllers; each controller then ends by itself."""
    everyone: list[psutil.Process] = []
    asked: list[psutil.Process] = []
    for pid in controllers:
        with suppress(psutil.NoSuchProcess):  # ended just now
            controller = psutil.Process(pid)
            tasks = controller.children(recursive=True)
            everyone += [controller, *tasks]
            # A controller would kill its tasks after one second, so it is not asked; one without tasks is.
            asked += tasks or [controller]
    _stop(everyone, asked, PATIENCE_S)


def stop_launchers(launchers: Iterable[int]) -> list[int]:
    """Stops some launchers, each of which stops its jobs; the controllers of those that it had."""
    found: list[psutil.Process] = []
    controllers: list[int] = []
    for pid in launchers:
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(pid)
            controllers += [child.pid for child in launcher.children()]
            found.append(launcher)
    _stop(found, found, PATIENCE_S + 4 * LAST_S)  # each may need all of its jobs' time
    return controllers


def _stop(everyone: Sequence[psutil.Process], asked: Sequence[psutil.Process], patience_s: float) -> None:
    """Asks some processes to end, and waits for all; a second Ctrl-C ends the wait, and the processes."""
    is_heard = any(not ignores_interrupts(process.pid) for process in asked)
    try:
        _send(asked, signal.SIGINT)
        _send(_left(everyone, patience_s if is_heard else 0.0), signal.SIGTERM)
        _left(everyone, LAST_S)
    finally:
        _send(_left(everyone, 0.0), signal.SIGKILL)
        _left(everyone, LAST_S)


def _left(processes: Iterable[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """Waits for the end of some processes, so long at most; those that go on."""
    end = time.monotonic() + patience_s
    while (left := [process for process in processes if _is_alive(process)]) and time.monotonic() < end:
        time.sleep(POLL_S)
    return left


def _is_alive(process: psutil.Process) -> bool:
    """True for a process that runs; psutil waits also for one that has ended and that its parent has not asked for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _send(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.Error):  # ended just now, or another user's
            process.send_signal(number)


def ignores_interrupts(pid: int) -> bool:
    """True for a process that ignores SIGINT, as one that a script starts with `&`; False where nothing tells."""
    try:
        told = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)$", told, re.MULTILINE)
    return ignored is not None and bool(int(ignored[1], 16) & (1 << (signal.SIGINT - 1)))
