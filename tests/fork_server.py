"""A process that has imported everything, and forks: `python -m tests.fork_server SOCKET` (see `tests/processes.py`).

It reads orders, one JSON object a line.  A fork takes the command line, folder and variables of its order, and runs the
module as a new Python process does.  The server answers with the fork's number and, on request, with the exit statuses
of its forks.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import traceback

import hydra.main  # noqa: F401
import torch

import analysis.report.report
import evaluation.evaluate  # noqa: F401
import matquant.training.train  # noqa: F401
import slurm.snapshot
import slurm.submit
import slurm.wording  # noqa: F401
from tests.hooked.sitecustomize import listen


def serve(orders: socket.socket) -> None:
    """Forks until nobody gives orders any more, then ends what is left."""
    children: set[int] = set()
    lines = orders.makefile("r")
    while line := lines.readline():
        order = json.loads(line)
        said = [{"ended": pid, "status": status} for pid, status in ended(children)]
        if order:
            if (pid := os.fork()) == 0:
                lines.close()
                orders.close()
                become(order)
            children.add(pid)
            said.append({"pid": pid})
        else:
            said.append({})
        orders.sendall("".join(json.dumps(one) + "\n" for one in said).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def ended(children: set[int]) -> list[tuple[int, int]]:
    """The forks that have ended since the last call, with their exit status as Popen gives it."""
    found = []
    for child in list(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            children.remove(pid)
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def become(order: dict) -> None:
    """Turns a fork into the process that was ordered, and never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN if order["deaf"] else signal.default_int_handler)
        if order["apart"]:
            os.setpgid(0, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(os.path.join(order["folder"], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, number)
            os.close(file)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        status = run(order["arguments"])
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def run(words: list[str]) -> int:
    """Runs a script, or a module behind -m, as the main program; its exit status."""
    module, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    sys.argv = [module, *arguments]
    listen(words[:3])
    try:
        if words[0] == "-m":
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(module, run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for pytest, and this process ends with pytest
    torch.set_num_threads(1)
    analysis.report.report.FORMS = ("svg",)  # what the page shows: the other forms have tests of their own
    gc.collect()
    gc.freeze()  # everything imported stays in memory that all forks share
    serve(socket.socket(fileno=int(sys.argv[1])))
