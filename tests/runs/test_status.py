"""A stage says how it stands: one word, one reason, and whether whoever said so is still alive."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from matquant.checkout import PROJECT
from matquant.errors import UserError
from matquant.runs import stopping
from matquant.runs.processes import user_name
from matquant.runs.status import SILENT_S, Reporter, Status, read_status, reason_of, reporting, words_of
from matquant.runs.stopping import Stopped


def caused(cause: Exception) -> Exception:
    error = RuntimeError("while saving")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("set paths.results"), "bad input"),
        (FloatingPointError("step 3: not finite"), "non-finite"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk full"),
        (OSError(errno.EACCES, "Permission denied"), "error"),
        (RuntimeError("shape mismatch"), "error"),
        (caused(FloatingPointError("nan")), "non-finite"),
        (ExceptionGroup("2 of 6 tasks", [FloatingPointError("nan"), RuntimeError("x")]), "non-finite"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else type(value).__name__,
)
def test_a_failure_has_the_reason_that_decides_what_to_do(error, reason):
    assert reason_of(error) == reason


def test_an_out_of_memory_error_of_the_real_allocator_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert reason_of(caught.value) == "out of memory"


def test_a_status_is_true_while_a_stage_runs_and_after_it(tmp_path):
    path = tmp_path / "train.status.json"
    with reporting(path) as reporter:
        status = read_status(path)
        assert status is not None
        assert (status.state, status.pid, status.is_alive()) == ("running", os.getpid(), True)
        reporter.beat(1, 8)
        assert read_status(path) == status  # too soon to say it again
    ended = read_status(path)
    assert ended is not None
    assert ended.state == "done"


def test_a_status_counts_anew_when_something_else_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("matquant.runs.status.BEAT_S", 0.0)
    path = tmp_path / "evaluate.status.json"
    with reporting(path) as reporter:
        for done in (3, 4):
            reporter.beat(done, 120, doing="searching for evolution@3")
        searching = read_status(path)
        reporter.beat(0, 50)
        reading = read_status(path)
    assert searching is not None
    assert reading is not None
    assert (searching.message, searching.first, searching.done, searching.total) == (
        "searching for evolution@3",
        3,
        4,
        120,
    )
    assert (reading.message, reading.first, reading.done, reading.total) == (None, 0, 0, 50)
    assert reading.since is not None
    assert searching.since is not None
    assert reading.since > searching.since


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (Stopped("stopped after block 3"), "stopped", "interrupted"),
        (RuntimeError("out of luck"), "failed", "error"),
        (SystemExit(-1), "stopped", "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_however_a_stage_ends_its_status_says_so(tmp_path, error, state, reason):
    path = tmp_path / "train.status.json"
    with pytest.raises(type(error)), reporting(path):
        raise error
    status = read_status(path)
    assert status is not None
    assert (status.state, status.reason) == (state, reason)


def test_a_message_is_one_line_of_readable_length_with_its_notes():
    error = RuntimeError("first\n  second")
    error.add_note("while scoring x on piqa")
    assert words_of(error) == "RuntimeError: first second (while scoring x on piqa)"
    assert len(words_of(RuntimeError("x" * 10_000))) == 1000
    group = ExceptionGroup("2 of 6 tasks", [ValueError("a"), UserError("b")])
    assert words_of(group).endswith("ValueError: a; b")


def test_a_shorter_status_leaves_nothing_of_a_longer_one(tmp_path):
    reporter = Reporter(tmp_path / "status.json")
    reporter.end("failed", "error", "ü" * 1000)
    reporter.end("done")
    status = read_status(reporter.path)
    assert status is not None
    assert status.message is None


def test_what_is_no_status_counts_as_none(tmp_path):
    path = tmp_path / "status.json"
    assert read_status(path) is None
    for text in ("", "{", "[]", '{"state": "running"}'):
        path.write_text(text)
        assert read_status(path) is None


def test_a_process_is_known_by_its_number_and_the_time_it_started():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    status = Reporter(Path(os.devnull)).status
    other = replace(status, pid=process.pid)
    assert not other.is_alive()  # the number of another process
    process.kill()
    process.communicate()
    assert not other.is_alive()
    assert status.is_alive()


def test_a_process_of_somebody_else_that_proc_does_not_show_is_alive_while_it_is_heard_of(monkeypatch):
    now, here = time.time(), socket.gethostname()
    hidden = Status("running", now, now, here, 2**22 - 1, 1.0)
    assert not hidden.is_alive()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("matquant.runs.processes.os.kill", refuse)
    assert hidden.is_alive()
    assert not replace(hidden, at=now - SILENT_S - 1).is_alive()


def test_a_status_names_the_user_and_the_job_of_its_process(tmp_path, monkeypatch):
    facts = {"JOB_ID": "12", "ARRAY_JOB_ID": "9", "ARRAY_TASK_ID": "3", "JOB_NAME": "mine", "CLUSTER_NAME": "home"}
    for name, value in facts.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    status = Reporter(tmp_path / "status.json").status
    assert (status.user, status.slurm_job, status.slurm_name, status.slurm_cluster) == (
        user_name(),
        "9_3",
        "mine",
        "home",
    )


def test_a_process_elsewhere_is_alive_while_it_is_heard_of():
    now = time.time()
    status = Status("running", now, now, f"not-{socket.gethostname()}", 1, 0.0)
    assert status.is_alive()
    assert not replace(status, at=now - SILENT_S - 1).is_alive()


# --- stopping --------------------------------------------------------------------------------------------------------

PROGRAM = """
import logging, signal, sys
from matquant.runs import stopping
from matquant.runs.processes import user_name
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
def scheduler(*_):
    print("requeued", flush=True)
    sys.exit(7)
signal.signal(signal.SIGUSR2, scheduler)
with stopping.at_safe_points(float(sys.argv[1])):
    print("at work", flush=True)
    for step in sys.stdin:
        if step == "safe point\\n":
            stopping.give_way("here")
        print("a step is done", flush=True)
print("finished", flush=True)
"""


def test_a_warning_makes_the_work_save_and_go_on():
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with stopping.at_safe_points(1.0):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping.hurried()
            assert not stopping.hurried()
            stopping.give_way("never")
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def ctrl_c(monkeypatch):
    """Sends Ctrl-C to this process, which remembers it for the time of a test."""
    monkeypatch.setattr(stopping, "_interrupted", False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stopping.remember_interrupts()
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_a_stage_also_where_a_library_makes_another_error_of_it(ctrl_c, tmp_path):
    def read_tensor() -> None:
        try:
            ctrl_c()
        except KeyboardInterrupt as interrupt:
            raise ValueError(
                "could not determine the shape of object type 'torch.storage.UntypedStorage'"
            ) from interrupt

    path = tmp_path / "train.status.json"
    with pytest.raises(KeyboardInterrupt), reporting(path):
        read_tensor()
    status = read_status(path)
    assert status is not None
    assert (status.state, status.reason) == ("stopped", "interrupted")


def test_where_ctrl_c_is_ignored_it_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stopping.remember_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_ctrl_c_an_error_stays_what_it_is(ctrl_c):
    with pytest.raises(ValueError, match="another"), stopping.interrupts_win():
        raise ValueError("another")


@pytest.fixture
def at_work():
    """Starts a program whose steps are lines that it is given, and asks it to stop when it is at work."""
    started = []

    def start(patience_s: float) -> subprocess.Popen[str]:
        command, pipe = [sys.executable, "-c", PROGRAM, str(patience_s)], subprocess.PIPE
        program = subprocess.Popen(command, cwd=PROJECT, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        started.append(program)
        assert program.stdout.readline() == "at work\n"
        program.send_signal(signal.SIGUSR2)
        assert program.stdout.readline() == "asked to stop: going on to the next safe point\n"
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()


def test_a_signal_waits_for_a_safe_point(at_work):
    program = at_work(1e6)
    for _ in range(3):
        program.stdin.write("step\n")
        assert program.stdout.readline() == "a step is done\n"
    program.stdin.write("safe point\n")
    assert program.stdout.read() == "requeued\n"
    assert program.wait() == 7


def test_a_signal_does_not_wait_for_ever(at_work):
    program = at_work(0.3)  # and no step ends any more
    assert program.stdout.read() == "no safe point for 0 s: stopping with the state that was saved last\nrequeued\n"
    assert program.wait() == 7


def test_a_refusal_to_start_again_is_told_from_the_error_that_an_interrupted_import_makes_of_it():
    def refuse(*_: object) -> None:
        raise RuntimeError("timed-out too many times")

    def imported(module: str) -> None:
        try:
            signal.raise_signal(signal.SIGALRM)  # no safe point has come for too long
        except Exception as error:  # as importlib and transformers do
            raise ModuleNotFoundError(f"could not import {module}") from error
        except BaseException as error:
            raise ImportError(f"broken {module}") from error

    before = signal.signal(signal.SIGUSR2, refuse)
    try:
        with pytest.raises(RuntimeError, match="timed-out too many times"), stopping.at_safe_points(1e6):
            imported("torch")
        with pytest.raises(ImportError, match="another"), stopping.at_safe_points(1e6):
            raise ImportError("another")
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_without_a_scheduler_nothing_changes_and_a_request_lasts_no_longer_than_the_work():
    with stopping.at_safe_points(1.0):
        assert not stopping.requested()
    stopping.request()
    try:
        with pytest.raises(Stopped, match="stopped after block 1, as asked; the state is saved"):
            stopping.give_way("after block 1")
    finally:
        stopping.reset()
    stopping.give_way("after block 2")
