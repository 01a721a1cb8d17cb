"""Launching studies on this machine: what is missing is done, once, and nothing is submitted that cannot run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from matquant.checkout import PROJECT
from tests.moments import BLOCK, Moment, Plan
from tests.processes import fork, only_sentence, variables
from tests.sweeps import (
    NAME,
    QUICK,
    STUDY,
    bits,
    items,
    launch,
    leftovers,
    logs,
    program,
    run_here,
    start,
    states,
    undisturbed,
)
from tests.tiny import TINY_GPTQ, tiny_overrides

TWO = (*QUICK, "cells=[{bits:[int2,matquant]}]")
SEARCHES = (
    "readout.plans=[int4, evolution@3, dynamic_program@3]",
    *("readout.tasks=[]", "readout.search.num_sequences=4"),
    *("readout.search.generations=4", "readout.search.offspring=6"),
)


def test_a_study_by_two_workers_ends_as_in_one_process_and_again_it_does_nothing(tmp_path, shared_folder):
    there = tmp_path / "there"
    dry = launch(there, *TWO, "--dry-run").stdout
    assert "4 jobs, about" in dry
    assert not list(there.glob("*/*"))

    done = launch(there, *TWO, "cluster.workers=2", "cluster.evaluate_jobs=2")
    assert done.stdout.count("done    ") == 5
    assert "every result is there" in done.stdout
    assert "matquant report" in done.stdout
    assert bits(there) == undisturbed(shared_folder, "two", *TWO)
    assert not leftovers(there)
    again = launch(there, *TWO).stdout
    assert "nothing to submit" in again
    # What ran was the snapshot, and the results say so.
    (code,) = (there / "runs/.snapshots").iterdir()
    (checkpoint, *_) = there.glob("runs/*/checkpoint/nested.json")
    assert json.loads(checkpoint.read_text())["snapshot"] == code.name


def test_a_search_is_a_job_of_its_own_that_is_interrupted_and_goes_on_to_the_same_plans(tmp_path, shared_folder):
    study = (*TINY_GPTQ, *SEARCHES, "bits=matquant")
    plan = Plan(tmp_path / "moments", [Moment("worker", r"/search/evolution-", 2, ("rename",), victims=("worker",))])
    launch(tmp_path, *study, check=False, plan=plan)
    told = {stage: item for (_, stage), item in items(tmp_path, *study).items()}
    assert {stage: item["state"] for stage, item in told.items()} == {
        "train": "done",
        "search": "failed",
        "evaluate": "missing",
    }
    assert told["search"]["reason"] == "killed"
    assert "every result is there" in launch(tmp_path, *study).stdout
    assert bits(tmp_path) == undisturbed(shared_folder, "searches", *study)
    here, there = (
        {path.name: path.read_bytes() for path in folder.glob("runs/*/plans/*.json")}
        for folder in (tmp_path, shared_folder / "undisturbed" / "searches")
    )
    assert here == there
    assert len(here) == 2


def test_some_cells_of_a_study_in_the_launching_process(tmp_path):
    done = launch(tmp_path, *TWO, "cluster=debug", "--only", "*int2*")
    assert "1 cells" in done.stdout
    assert states(tmp_path, *TWO) == ["done", "done", "missing", "missing"]


def test_one_cell_that_fails_does_not_stop_the_others_and_is_not_tried_again_unasked(tmp_path):
    # int8 alone diverges: of two weight decays, one that overflows.
    study = ("base=qat", "base.batch_size=2", "base.max_skipped_steps=0", "base.warmup_steps=0", "readout.tasks=[piqa]")
    cells = "cells=[{bits:[int2],base.num_steps:[2],base.lr:[1e30]},{bits:[int8],base.num_steps:[1],base.lr:[1e-4]}]"
    done = launch(tmp_path, *study, cells, check=False)
    assert done.returncode == 1
    told = {(cell.split("-")[2], stage): item for (cell, stage), item in items(tmp_path, *study, cells).items()}
    assert {key: item["state"] for key, item in told.items()} == {
        ("int2", "train"): "failed",
        ("int2", "evaluate"): "missing",
        ("int8", "train"): "done",
        ("int8", "evaluate"): "done",
    }
    assert told["int2", "train"]["reason"] == "non-finite"
    assert "remedy: the same cell would fail again" in done.stdout
    again = launch(tmp_path, *study, cells, "--retry-failed").stdout
    assert "nothing to submit" in again
    assert "not submitted:" in again


def test_two_launchers_at_once_do_the_work_once(tmp_path):
    # Both have found the same job missing, and are about to start it.
    about_to_start = Moment("launcher", r"/train\.job\.json$", events=("rename",), hold=True)
    plan = Plan(tmp_path / "moments", [about_to_start, about_to_start])
    both = [start(tmp_path, *TWO, plan=plan) for _ in range(2)]
    for number in (0, 1):
        plan.wait_for(number)
    for number in (0, 1):
        plan.go_on(number)
    for process in both:
        process.check()
    assert set(states(tmp_path, *TWO)) == {"done"}
    for log in tmp_path.glob("runs/*/train.jsonl"):
        steps = [(x["block"], x["step"]) for x in map(json.loads, log.read_text().splitlines()) if "step" in x]
        assert steps == [(block, step) for block in range(2) for step in range(2)]
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cluster=slrum"], "cluster=slrum does not exist; did you mean slurm?"),
        (["cluster.worker=2"], "did you mean cluster.workers or"),
        (["--only", "nothing*"], "sweep has no cells whose id matches --only nothing*"),
        (
            ["cluster=slurm"],
            "cannot be found; run this where SLURM's commands are (a login node), or use cluster=local",
        ),
        (["cluster=slurm", "cluster.time_min=2"], "signal_delay_s=120 is more than half of time_min=2"),
        (["paths.runs=/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["readout.tasks=[piqqa]"], "piqqa"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_nothing_is_submitted(arguments, message, tmp_path):
    without_slurm = {**variables(), "PATH": str(Path(sys.executable).parent)}
    done = fork("-m", "matquant", "launch", *tiny_overrides(tmp_path), NAME, *arguments, environment=without_slurm)
    assert done.wait() == 2, done.told()
    line = only_sentence(done.stderr)
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.glob("*/*/*.job.json"))


def test_a_cell_whose_model_cannot_be_had_is_refused_and_the_others_run(tmp_path):
    cells = "cells=[{model:[tiny,llama32_1b],base:[minmax],bits:[int8]}]"
    (model, *rest) = tiny_overrides(tmp_path)
    assert model == "model=tiny"
    done = fork("-m", "matquant", "launch", *rest, NAME, cells, "readout.tasks=[piqa]", "cluster=debug")
    assert done.wait() == 2, done.told()
    assert "not submitted:" in done.stdout
    assert "is not in the local cache" in done.stdout
    assert len(list(tmp_path.glob("results/*/*/piqa-*.json"))) == 3


def test_status_and_launch_teach_what_they_do(tmp_path):
    for subcommand in ("launch", "status"):
        text = program(subcommand, tmp_path, "--help").stdout
        assert "examples:" in text
        assert f"matquant {subcommand} experiment=table01" in text
    text = program("status", tmp_path, *TWO).stdout
    assert "missing" in text


def test_cancelling_a_study_of_this_machine_stops_its_launcher_and_a_dry_run_stops_nothing(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("worker", BLOCK, 2, events=("rename",), hold=True)])
    launcher = start(tmp_path, *STUDY, plan=plan)
    plan.wait_for(by=launcher)
    assert "would cancel 1 jobs" in launch(tmp_path, *STUDY, "--cancel", "--dry-run").stdout
    assert launcher.poll() is None
    assert plan.alive("worker")
    assert "cancelled 1 jobs" in launch(tmp_path, *STUDY, "--cancel").stdout
    assert launcher.wait() == 130
    assert "the same command continues" in launcher.stderr
    assert not plan.alive("launcher", "controller", "worker")
    told = {stage: item["reason"] for (_, stage), item in items(tmp_path, *STUDY).items()}
    assert told["train"] in ("interrupted", "killed")


def test_ctrl_c_in_a_terminal_reaches_the_launcher_alone_which_lets_its_worker_end(tmp_path):
    ending = Moment("worker", r"/train\.status\.json$", events=("write",), hold=True)
    plan = Plan(tmp_path / "moments", [Moment("worker", BLOCK, 2, events=("rename",), hold=True), ending])
    launcher = start(tmp_path, *STUDY, plan=plan, apart=True)
    plan.wait_for(by=launcher)
    (controller,), (worker,) = plan.alive("controller"), plan.alive("worker")
    assert os.getsid(controller) == os.getsid(worker) == controller != os.getsid(launcher.pid)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does: to its whole foreground group
    plan.wait_for(1, by=launcher)  # the worker reports its end; nobody has killed it
    plan.go_on(1)
    assert launcher.wait() == 130
    assert not plan.alive("controller", "worker")
    told = {stage: item["reason"] for (_, stage), item in items(tmp_path, *STUDY).items()}
    assert told["train"] == "interrupted"


def test_a_launcher_that_ignores_sigint_is_cancelled_with_its_worker(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("worker", BLOCK, 2, events=("rename",), hold=True)])
    launcher = start(tmp_path, *STUDY, plan=plan, deaf=True)
    plan.wait_for(by=launcher)
    assert "cancelled 1 jobs" in launch(tmp_path, *STUDY, "--cancel").stdout
    assert not plan.alive("launcher", "controller", "worker")
    assert launcher.wait() == -signal.SIGTERM
    # The worker has heard the SIGINT that its launcher ignored.
    told = {stage: item["reason"] for (_, stage), item in items(tmp_path, *STUDY).items()}
    assert told["train"] == "interrupted"


def test_cancelling_some_cells_leaves_the_launcher_at_work_on_the_others(tmp_path):
    # Either worker may be the first: the one that is held leaves the second moment to the other.
    plan = Plan(tmp_path / "moments", [Moment("worker", BLOCK, events=("rename",), hold=True)] * 2)
    launcher = start(tmp_path, *TWO, "cluster.workers=2", plan=plan)
    for number in (0, 1):
        plan.wait_for(number, by=launcher, told=lambda: logs(tmp_path))
    done = launch(tmp_path, *TWO, "--cancel", "--only", "*matquant*")
    assert "cancelled 1 jobs" in done.stdout
    assert f"the launcher, process {launcher.pid}, goes on with its other jobs" in done.stdout
    assert launcher.poll() is None
    assert len(plan.alive("worker")) == 1
    for number in (0, 1):
        plan.go_on(number)
    assert launcher.wait() == 1
    told = {(cell.split("-")[2], stage): item["state"] for (cell, stage), item in items(tmp_path, *TWO).items()}
    assert told["int2", "train"] == told["int2", "evaluate"] == "done"
    assert told["matquant", "train"] == "failed"


def test_the_next_launcher_waits_for_what_a_killed_one_has_left_at_work(tmp_path, shared_folder):
    moments = [
        Moment("worker", BLOCK, 1, events=("rename",), victims=("launcher",)),
        Moment("worker", BLOCK, 1, events=("rename",), hold=True),
        Moment("launcher", r"/train\.status\.json$", 3, events=("read",)),  # it looks, and looks again
    ]
    plan = Plan(tmp_path / "moments", moments)
    assert launch(tmp_path, *STUDY, check=False, plan=plan).returncode == -signal.SIGKILL
    plan.wait_for(1, told=lambda: logs(tmp_path))
    worker, second = plan.alive("worker"), start(tmp_path, *STUDY, plan=plan)
    plan.wait_for(2, by=second)
    assert plan.alive("worker") == worker  # the one that was left, and no other
    plan.go_on(1)
    assert "every result is there" in second.check().stdout
    assert set(states(tmp_path, *STUDY)) == {"done"}
    assert bits(tmp_path) == undisturbed(shared_folder, "study", *STUDY)


# --- a full disk -----------------------------------------------------------------------------------------------------

SMALL_DISK = "mount -t tmpfs -o size={size} none {folder} && cp -r {before}/results {folder} && {command}"


def can_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True
        ).returncode
    )


@pytest.mark.skipif(not can_mount(), reason="no private mounts here (unshare): a full disk cannot be made")
def test_a_full_disk_is_called_one_and_earlier_results_stay_intact(tmp_path):
    disk, before = tmp_path / "disk", tmp_path / "before"
    disk.mkdir()
    run_here(before, "base=none", "readout.tasks=[piqa]")
    kept = bits(before)
    study = [
        *STUDY,
        "model.config.num_hidden_layers=8",
        "base.num_steps=1",
        "cells=[{base:[none]},{base:[omniquant],bits:[matquant]}]",
        "cluster=debug",
    ]
    study = [argument for argument in study if not argument.startswith("bits=")]
    typed = [f"'{word}'" for word in [*tiny_overrides(disk), NAME, *study]]
    inner = " ".join([sys.executable, "-m", "matquant", "launch", *typed])
    # Room for the snapshot of a launch and a few blocks, not for the checkpoint; what is left is copied out.
    script = SMALL_DISK.format(
        size="200k", folder=disk, before=before, command=f'sh -c "{inner}; cp -r {disk}/. {tmp_path}/after"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        cwd=PROJECT,
        env={**variables(), "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
        capture_output=True,
        text=True,
    )
    after = tmp_path / "after"
    assert "disk full" in done.stdout, done.stdout + done.stderr
    assert f"no space left on {disk}/runs/" in done.stdout
    assert "set paths.runs to a disk with room" in done.stdout
    assert "Traceback" not in done.stderr
    assert "make room in paths.runs" in done.stdout
    assert {name: content for name, content in bits(after).items() if name in kept} == kept
    assert not list(after.rglob("*.tmp"))
