"""Sweeps on a real SLURM cluster: arrays, preemption, time limits, cancelled and killed jobs, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from matquant.runs import PROJECT
from tests.slurm_cluster.conftest import running
from tests.sweeps import (
    NAME,
    QUICK,
    SLOW,
    bits,
    items,
    launch,
    leftovers,
    pieces,
    run_here,
    states,
    variables,
    wait_until,
)
from tests.tiny import tiny_overrides

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

ON_SLURM = (
    *("cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1", "cluster.mem_gb_per_task=1"),
    *("cluster.time_min=5", "cluster.signal_delay_s=30"),
)
SIX = (*QUICK, "cells=[{bits:[int2,int4,matquant],seed:[0,1]}]")


def jobs(*options: str) -> list[str]:
    """The lines of SLURM's queue."""
    done = subprocess.run(["squeue", "--noheader", "--array", *options], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def job_id(folder: Path, stage: str, *study: str) -> str:
    found = items(folder, *ON_SLURM, *study).items()
    (number,) = [item["submission"]["job_id"] for (_, at), item in found if at == stage]
    return number


def starts_of_stopped_jobs(folder: Path) -> list[int]:
    """Of every job that was asked to stop, how often it started."""
    logs = [path.read_text() for path in folder.glob("runs/.jobs/*/*.out")]
    return [log.count("Starting with JobEnvironment") for log in logs if "asked to stop" in log]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The slow cell, trained and read without any interruption."""
    return run_here(tmp_path_factory.mktemp("undisturbed"), *SLOW)


def test_six_cells_end_to_end_by_arrays_and_nothing_is_submitted_twice(tmp_path, ended):
    here, there = tmp_path / "here", tmp_path / "there"
    dry = launch(there, *ON_SLURM, *SIX, "--dry-run").stdout
    assert "12 jobs" in dry
    assert not jobs()
    assert not list(there.glob("runs/*"))

    assert "submitted 12 jobs" in launch(there, *ON_SLURM, *SIX).stdout
    arrays = {line.split("_")[0] for line in jobs("--format", "%i")}
    assert len(arrays) == 2
    assert "nothing to submit" in launch(there, *ON_SLURM, *SIX).stdout
    wait_until(ended, 300)
    assert states(there, *ON_SLURM, *SIX) == ["done"] * 12
    assert "nothing to submit" in launch(there, *ON_SLURM, *SIX).stdout
    assert bits(there) == run_here(here, *SIX)
    assert not leftovers(there)


def test_a_job_that_is_preempted_goes_on_to_the_same_bits(tmp_path, ended, undisturbed):
    launch(tmp_path, *ON_SLURM, *SLOW)
    wait_until(lambda: pieces(tmp_path))
    urgent = ["sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap", "sleep 3"]
    subprocess.run(urgent, check=True, capture_output=True)
    wait_until(lambda: any("PENDING" in line for line in jobs("--format", "%i %T %j") if "sweep" in line))
    wait_until(ended, 300)
    assert bits(tmp_path) == undisturbed
    assert not leftovers(tmp_path)
    assert starts_of_stopped_jobs(tmp_path) == [2]


LONG = (*SLOW, "base.num_steps=900")
"""Longer, on a quick machine too, than SLURM takes to look at time limits (every half minute)."""


def test_a_job_at_its_time_limit_saves_requeues_and_goes_on_to_the_same_bits(tmp_path, ended):
    here, there = tmp_path / "here", tmp_path / "there"
    launch(there, *ON_SLURM, *LONG)
    wait_until(lambda: pieces(there))
    # SLURM warns signal_delay_s before the end: when it looks next.
    training = job_id(there, "train", *LONG)
    subprocess.run(["scontrol", "update", f"JobId={training}", "EndTime=now+31seconds"], check=True)
    wait_until(ended, 400)
    assert starts_of_stopped_jobs(there) == [2]
    assert bits(there) == run_here(here, *LONG)
    assert not leftovers(there)


def test_a_cancelled_job_is_told_from_a_failed_one_and_goes_on_with_the_next_launch(tmp_path, ended):
    launch(tmp_path, *ON_SLURM, *LONG)
    wait_until(lambda: pieces(tmp_path))
    subprocess.run(["scancel", job_id(tmp_path, "train", *LONG)], check=True)
    wait_until(ended)
    told = {stage: item["reason"] for (_, stage), item in items(tmp_path, *ON_SLURM, *LONG).items()}
    assert told == {"train": "cancelled", "evaluate": None}
    assert "submitted 2 jobs" in launch(tmp_path, *ON_SLURM, *LONG).stdout
    kept = len(pieces(tmp_path))
    wait_until(lambda: len(pieces(tmp_path)) > kept)
    assert "cancelled 2 jobs" in launch(tmp_path, *ON_SLURM, *LONG, "--cancel").stdout
    wait_until(ended)


def test_a_job_killed_without_warning_loses_only_the_work_since_its_last_save(tmp_path, ended, undisturbed):
    launch(tmp_path, *ON_SLURM, *SLOW)
    wait_until(lambda: len(pieces(tmp_path)) >= 2)
    kept = {path: path.stat().st_mtime_ns for path in pieces(tmp_path)}
    (item,) = [item for (_, stage), item in items(tmp_path, *ON_SLURM, *SLOW).items() if stage == "train"]
    os.kill(item["status"]["pid"], signal.SIGKILL)
    wait_until(ended)
    told = items(tmp_path, *ON_SLURM, *SLOW)
    assert {item["reason"] for item in told.values()} == {"killed", None}
    launch(tmp_path, *ON_SLURM, *SLOW, "--wait")
    assert ended()
    assert bits(tmp_path) == undisturbed
    assert len(kept) >= 2


def test_qat_is_spread_over_the_gpus_of_a_job_and_survives_a_preemption(tmp_path, ended):
    # The node's two GPUs are only names: the ranks compute on its CPUs.
    long = ("base=qat", "base.num_steps=200", "base.batch_size=2", "base.compute_dtype=float32", "base.warmup_steps=2")
    study = (*ON_SLURM, *long, "bits=matquant", "readout.tasks=[piqa]", "cluster.gpus_per_node=2")
    launch(tmp_path, *study)
    wait_until(lambda: any(path.stat().st_size > 2000 for path in tmp_path.glob("runs/*/train.jsonl")))
    (training,) = [item for (_, stage), item in items(tmp_path, *study).items() if stage == "train"]
    command = ["scancel", "--signal=USR2", training["submission"]["job_id"]]
    subprocess.run(command, check=True)
    wait_until(ended, 300)
    assert set(states(tmp_path, *study)) == {"done"}
    (log,) = tmp_path.glob("runs/*/train.jsonl")
    steps = [record["step"] for record in map(json.loads, log.read_text().splitlines()) if "step" in record]
    assert steps == list(range(200))
    assert starts_of_stopped_jobs(tmp_path) == [2, 2]  # both ranks
    assert not leftovers(tmp_path)


def test_a_cell_that_fails_is_named_with_reason_and_log_and_its_evaluation_goes_away(tmp_path, ended):
    # A gradient that overflows, and no patience with it.
    diverging = ("base=qat", "base.num_steps=3", "base.batch_size=2", "base.max_skipped_steps=0", "base.lr=1e30")
    study = (*diverging, "base.warmup_steps=0", "bits=matquant", "readout.tasks=[piqa]")
    assert launch(tmp_path, *ON_SLURM, *study, "--wait", check=False).returncode == 1
    assert ended()
    told = {stage: item for (_, stage), item in items(tmp_path, *ON_SLURM, *study).items()}
    assert told["train"]["reason"] == "non-finite"
    assert "lower base.lr" in told["train"]["note"]
    assert told["evaluate"]["state"] == "missing"
    log = Path(told["train"]["submission"]["log"])
    assert "FloatingPointError" in log.read_text()
    # Not blindly again, unless it is asked for by name.
    assert "nothing to submit" in launch(tmp_path, *ON_SLURM, *study).stdout
    refused = launch(tmp_path, *ON_SLURM, *study, "--retry-failed").stdout
    assert "nothing to submit" in refused
    assert "remedy: the same cell meets it again" in refused
    assert "submitted 2 jobs" in launch(tmp_path, *ON_SLURM, *study, "--retry-failed=all").stdout
    assert "cancelled" in launch(tmp_path, *ON_SLURM, *study, "--cancel").stdout
    wait_until(ended)


def test_what_slurm_refuses_is_said_in_its_words_and_leaves_no_record(tmp_path):
    refused = launch(tmp_path, *ON_SLURM, *QUICK, "cluster.partition=nowhere", check=False)
    assert refused.returncode == 2
    assert "SLURM refused 1 jobs: Batch job submission failed: Invalid partition name specified" in " ".join(
        refused.stderr.split()
    ).replace("invalid partition specified: nowhere; ", "")
    assert "Traceback" not in refused.stderr
    assert not list(tmp_path.glob("runs/*/*.job.json"))


def test_hydra_multirun_through_submitit(tmp_path, ended):
    overrides = [*tiny_overrides(tmp_path), NAME, "readout.tasks=[piqa]", "base=minmax", "bits=int8,int4,int3,int2"]
    small = ["hydra.launcher.mem_gb=1", "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"]
    command = [sys.executable, "run.py", "-m", "hydra/launcher=submitit_slurm", *small, *overrides]
    done = subprocess.run(command, cwd=PROJECT, env=variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/*/checkpoint/nested.json"))) == 4
    assert len(list(tmp_path.glob("results/*/*/piqa-*.json"))) == 3 + 1 + 1 + 1


def test_a_hydra_job_that_is_preempted_is_requeued_and_goes_on(tmp_path, ended, undisturbed):
    small = ["hydra.launcher.mem_gb=1", "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"]
    command = [sys.executable, "run.py", "-m", "hydra/launcher=submitit_slurm", *small, *tiny_overrides(tmp_path)]
    process = subprocess.Popen([*command, NAME, *SLOW], cwd=PROJECT, env=variables(), stderr=subprocess.PIPE)
    wait_until(lambda: pieces(tmp_path))
    (job,) = {line.split()[0] for line in jobs("--format", "%i")}
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert bits(tmp_path) == undisturbed


def test_a_cluster_without_accounting_does_not_hang_us(tmp_path):
    with running(Path(f"/tmp/matquant-noacct-{os.getuid()}"), accounting=False):
        launch(tmp_path, *ON_SLURM, *SLOW)
        wait_until(lambda: pieces(tmp_path))
        (item,) = [item for (_, stage), item in items(tmp_path, *ON_SLURM, *SLOW).items() if stage == "train"]
        os.kill(item["status"]["pid"], signal.SIGKILL)
        launch(tmp_path, *ON_SLURM, *SLOW, "--wait")
        assert set(states(tmp_path, *ON_SLURM, *SLOW)) == {"done"}
