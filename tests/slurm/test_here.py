"""Jobs as processes of this machine: their GPUs, their sessions, and how they are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import submitit

from matquant.errors import UserError
from slurm import cancelling, gpus, interrupting, sessions
from slurm.here import Workers, run_local
from slurm.interrupting import ignores_interrupts, stop_jobs
from slurm.plan import observe
from slurm.records import Submission
from slurm.sessions import own_sessions
from tests.sweeps import launch
from tests.tiny import TINY_GPTQ

LOCAL = ("cluster=local", *TINY_GPTQ)
UUIDS = ("GPU-8a56b2c0-11", "MIG-3c1b", "GPU-77aa", "MIG-9")


@pytest.mark.parametrize(
    ("named", "names"),
    [
        ("0,1", ("0", "1")),
        (" 3 , 1,", ("3", "1")),
        ("GPU-8a56b2c0-11,MIG-3c1b", ("GPU-8a56b2c0-11", "MIG-3c1b")),
        ("1,-1,2", ("1",)),  # CUDA stops at the first name that is none
        ("", ()),
        ("NoDevFiles", ()),
    ],
)
def test_gpus_are_known_by_the_names_that_cuda_takes(named, names, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.visible_gpus() == names


def test_each_worker_has_gpus_of_its_own_in_its_environment(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(UUIDS))
    seen: list[str] = []

    class Started:
        pid = os.getpid()

        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(sessions.subprocess, "Popen", Started)
    study = ("cluster.workers=2", "cluster.gpus_per_worker=2", "base=qat", "base.batch_size=4", "bits=int8")
    sweep = observe(tiny_study("cluster=local", *study))
    workers = Workers(sweep, tmp_path)
    for number, item in ((0, sweep.items[0]), (1, sweep.items[0]), (1, sweep.items[1])):
        workers.start(number, item)
    # base=qat trains on all GPUs of its worker; an evaluation takes one.
    assert seen == [",".join(UUIDS[:2]), ",".join(UUIDS[2:]), UUIDS[2]]


@pytest.mark.parametrize(
    ("named", "typed", "sentence", "remedies"),
    [
        ("0", (2, 1), "2 workers x 1 GPU, and this machine shows 1; set", ("cluster.workers=1",)),
        ("GPU-7", (2, 1), "2 workers x 1 GPU, and this machine shows 1; set", ("cluster.workers=1",)),
        ("0,1", (1, 4), "1 worker x 4 GPUs, and this machine shows 2; set", ("cluster.gpus_per_worker=2",)),
        (
            *("0,1", (2, 4), "2 workers x 4 GPUs, and this machine shows 2; set"),
            ("cluster.workers=1", "cluster.gpus_per_worker=2"),
        ),
    ],
)
def test_workers_without_a_gpu_are_refused_with_a_remedy_that_works(
    named, typed, sentence, remedies, tiny_study, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    words = [*LOCAL, f"cluster.workers={typed[0]}", f"cluster.gpus_per_worker={typed[1]}"]
    with pytest.raises(UserError) as raised:
        gpus.check_gpus(tiny_study(*words).setup)
    assert str(raised.value) == " ".join([sentence, *remedies])
    gpus.check_gpus(tiny_study(*words, *remedies).setup)


def test_a_machine_without_gpus_refuses_nothing(tiny_study, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpus.check_gpus(tiny_study(*LOCAL, "cluster.workers=2", "cluster.gpus_per_worker=1").setup)


def test_gpus_that_no_worker_is_given_are_said_to_be_hidden(tiny_study, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(UUIDS))
    sweep = observe(tiny_study(*LOCAL))
    run_local(lambda: sweep, lambda _: [], tmp_path)
    assert "cluster.gpus_per_worker=0 hides the 4 GPUs of this machine from its workers" in caplog.text


@pytest.mark.parametrize("flags", [(), ("--dry-run",)], ids=["launch", "dry run"])
def test_a_launch_and_its_dry_run_say_that_gpus_are_too_few(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
    done = launch(tmp_path, *LOCAL, "cluster.workers=2", "cluster.gpus_per_worker=1", *flags, check=False)
    assert done.returncode == 2
    assert "error: 2 workers x 1 GPU, and this machine shows 1; set cluster.workers=1" in done.stdout + done.stderr
    assert not list(tmp_path.glob("runs/*/*.job.json"))


def test_a_job_is_in_a_session_of_its_own_with_its_variables_and_hears_sigint(tmp_path):
    executor = submitit.LocalExecutor(tmp_path)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script that has started the launcher with `&`
    try:
        with own_sessions(CUDA_VISIBLE_DEVICES="GPU-7"):
            asked = [executor.submit(os.getsid, 0), executor.submit(os.getenv, "CUDA_VISIBLE_DEVICES")]
            heard = executor.submit(signal.getsignal, signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert [job.result() for job in asked] == [int(asked[0].job_id), "GPU-7"]
    assert heard.result() is signal.default_int_handler


DEAF = "import signal, time; signal.signal(2, signal.SIG_IGN); {more}; print(flush=True); time.sleep(3600)"


@pytest.mark.parametrize(
    ("more", "number"),
    [("pass", signal.SIGTERM), ("signal.signal(15, signal.SIG_IGN)", signal.SIGKILL)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_a_process_that_ignores_sigint_is_ended_all_the_same(more, number):
    with subprocess.Popen([sys.executable, "-c", DEAF.format(more=more)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert ignores_interrupts(process.pid)
        stop_jobs([process.pid])
        assert process.wait() == -number


def test_what_does_not_end_is_not_counted_as_cancelled_and_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cancelling, "stop_jobs", lambda _: None)  # as where the kernel does not let a process end
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        submission = replace(Submission("L", "local", "L").with_process(process.pid, tmp_path / "log"), launcher=None)
        item: Any = SimpleNamespace(
            cell_id="cell", state="running", job=None, owner=None, submission=submission, stage=None
        )
        sweep: Any = SimpleNamespace(items=[item], only=lambda _: sweep)
        assert cancelling.cancel(sweep, lambda _: True, dry_run=False) == 1
    said = capsys.readouterr().out
    assert "cancelled 0 jobs" in said
    assert f"process {process.pid} was killed and still runs" in said


def test_a_second_ctrl_c_does_not_wait_and_leaves_nothing_at_work(monkeypatch):
    slow = "import signal, time; signal.signal(2, lambda *_: None); print(flush=True)\nwhile True: time.sleep(3600)"
    with subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        def interrupt(_: float) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(interrupting.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stop_jobs([process.pid])
        assert process.wait() == -signal.SIGKILL
