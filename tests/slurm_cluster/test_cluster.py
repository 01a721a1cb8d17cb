"""Sweeps on a real SLURM cluster: arrays, preemption, time limits, cancelled and killed jobs, failures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from matquant.checkout import PROJECT
from tests.moments import BLOCK, STEP, Moment, Plan
from tests.processes import python, variables
from tests.slurm_cluster.conftest import on
from tests.slurm_cluster.sweeping import (
    AFTER_A_BLOCK,
    ON_SLURM,
    SIGNAL_DELAY_S,
    ask,
    go_on_when_asked_to_stop,
    held,
    job_id,
    jobs,
    starts_of_stopped_jobs,
    told,
    wait,
    wait_for_end,
)
from tests.sweeps import (
    NAME,
    QUICK,
    STUDY,
    bits,
    items,
    launch,
    leftovers,
    pieces,
    run_here,
    states,
    undisturbed,
)
from tests.tiny import TINY_GPTQ, tiny_overrides

pytestmark = pytest.mark.usefixtures("cluster")
BARE, BOTH = on("bare"), on("limits", "bare")

ON_HYDRA = (
    *("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1"),
    *("hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"),
)
SIX = (*QUICK, "cells=[{bits:[int2,int4,matquant],seed:[0,1]}]")


def test_six_cells_end_to_end_by_arrays_and_nothing_is_submitted_twice(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    dry = launch(there, *ON_SLURM, *SIX, "--dry-run").stdout
    assert "12 jobs" in dry
    assert not jobs()
    assert not list(there.glob("runs/*"))

    # Held, so that none has ended before they are counted.
    plan = Plan(tmp_path / "moments", [Moment("worker", r"/cell\.json$", events=("rename",), hold=True)])
    assert "submitted 12 jobs" in launch(there, *ON_SLURM, *SIX, plan=plan).stdout
    plan.wait_for(told=lambda: told(there))
    arrays = {line.split("_")[0] for line in jobs("--format", "%i")}
    assert len(arrays) == 4  # of five and of one: the cluster takes no larger ones
    assert "nothing to submit" in launch(there, *ON_SLURM, *SIX).stdout
    plan.go_on()
    wait_for_end(there)
    assert states(there, *ON_SLURM, *SIX) == ["done"] * 12
    assert "nothing to submit" in launch(there, *ON_SLURM, *SIX).stdout
    assert bits(there) == run_here(here, *SIX)
    assert not leftovers(there)


@BARE
def test_a_search_is_a_job_between_training_and_evaluation(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    plans = ("readout.plans=[int4, evolution@3]", "readout.search.generations=2", "readout.search.offspring=6")
    study = (*TINY_GPTQ, *plans, "readout.search.num_sequences=4", "readout.tasks=[]", "cells=[{seed:[0,1]}]")
    assert "submitted 6 jobs" in launch(there, *ON_SLURM, *study).stdout
    wait_for_end(there)
    assert states(there, *ON_SLURM, *study) == ["done"] * 6
    assert bits(there) == run_here(here, *study)


@BOTH
def test_a_job_that_is_preempted_goes_on_to_the_same_bits(tmp_path, shared_folder):
    plan, over = held(tmp_path, *STUDY), tmp_path / "over"
    urgent = f"until [ -e {over} ]; do sleep 0.1; done"
    ask("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap", urgent)
    go_on_when_asked_to_stop(plan, tmp_path)
    ours = job_id(tmp_path, *STUDY)
    wait(lambda: f"{ours} PENDING" in jobs("--format", "%i %T"), "the job to be put back into the queue", tmp_path)
    over.touch()
    wait_for_end(tmp_path)
    assert bits(tmp_path) == undisturbed(shared_folder, "study", *STUDY)
    assert not leftovers(tmp_path)
    assert starts_of_stopped_jobs(tmp_path) == [2]


@BARE
def test_a_job_at_its_time_limit_saves_requeues_and_goes_on_to_the_same_bits(tmp_path, shared_folder):
    plan = held(tmp_path, *STUDY)
    # SLURM warns signal_delay_s before the end, when it looks next: it does so every half minute.
    ask("scontrol", "update", f"JobId={job_id(tmp_path, *STUDY)}", f"EndTime=now+{SIGNAL_DELAY_S + 1}seconds")
    go_on_when_asked_to_stop(plan, tmp_path)
    wait_for_end(tmp_path)
    assert starts_of_stopped_jobs(tmp_path) == [2]
    assert bits(tmp_path) == undisturbed(shared_folder, "study", *STUDY)
    assert not leftovers(tmp_path)


def test_a_cancelled_job_is_told_from_a_failed_one_and_goes_on_with_the_next_launch(tmp_path):
    plan = held(tmp_path, *STUDY)
    ask("scancel", job_id(tmp_path, *STUDY))
    wait_for_end(tmp_path)
    reasons = {stage: item["reason"] for (_, stage), item in items(tmp_path, *ON_SLURM, *STUDY).items()}
    assert reasons == {"train": "cancelled", "evaluate": None}
    kept = len(pieces(tmp_path))
    assert kept == 1
    plan.add(AFTER_A_BLOCK)
    assert "submitted 2 jobs" in launch(tmp_path, *ON_SLURM, *STUDY, plan=plan).stdout
    plan.wait_for(1, told=lambda: told(tmp_path))
    assert len(pieces(tmp_path)) == kept + 1
    assert "cancelled 2 jobs" in launch(tmp_path, *ON_SLURM, *STUDY, "--cancel").stdout
    wait_for_end(tmp_path)


@BOTH
def test_a_job_killed_without_warning_loses_only_the_work_since_its_last_save(tmp_path, shared_folder):
    plan = Plan(tmp_path / "moments", [Moment("worker", BLOCK, 3, events=("rename",), victims=("worker",))])
    launch(tmp_path, *ON_SLURM, *STUDY, plan=plan)
    wait_for_end(tmp_path)
    assert plan.taken() == [["worker"]]
    kept = {path: path.stat().st_mtime_ns for path in pieces(tmp_path)}
    assert len(kept) == 2
    ended = items(tmp_path, *ON_SLURM, *STUDY)
    assert {item["reason"] for item in ended.values()} == {"killed", None}
    plan.add(Moment("worker", BLOCK, 1, events=("rename",), hold=True))
    launch(tmp_path, *ON_SLURM, *STUDY, plan=plan)
    plan.wait_for(1, told=lambda: told(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in pieces(tmp_path)} == kept  # nothing of it is computed again
    plan.go_on(1)
    launch(tmp_path, *ON_SLURM, *STUDY, "--wait")
    assert set(states(tmp_path, *ON_SLURM, *STUDY)) == {"done"}
    wait_for_end(tmp_path)  # all results are there a moment before the process that wrote the last one has gone
    assert bits(tmp_path) == undisturbed(shared_folder, "study", *STUDY)


def test_qat_is_spread_over_the_gpus_of_a_job_and_survives_a_preemption(tmp_path):
    # The node's two GPUs are only names: the ranks compute on its CPUs.
    qat = ("base=qat", "base.num_steps=8", "base.batch_size=2", "base.compute_dtype=float32", "base.warmup_steps=2")
    study = (*qat, "bits=matquant", "readout.tasks=[piqa]", "cluster.gpus_per_node=gpu:h100:2")
    plan = held(tmp_path, *study, at=Moment("worker", STEP, 4, hold=True))
    ask("scancel", "--signal=USR2", job_id(tmp_path, *study))
    go_on_when_asked_to_stop(plan, tmp_path)
    wait_for_end(tmp_path)
    assert set(states(tmp_path, *ON_SLURM, *study)) == {"done"}
    (log,) = tmp_path.glob("runs/*/train.jsonl")
    steps = [record["step"] for record in map(json.loads, log.read_text().splitlines()) if "step" in record]
    assert steps == list(range(8))
    assert starts_of_stopped_jobs(tmp_path) == [2, 2]  # both ranks
    assert not leftovers(tmp_path)


@BARE
def test_a_cell_that_fails_is_named_with_reason_and_log_and_its_evaluation_goes_away(tmp_path):
    # A gradient that overflows, and no patience with it.
    diverging = ("base=qat", "base.num_steps=3", "base.batch_size=2", "base.max_skipped_steps=0", "base.lr=1e30")
    study = (*diverging, "base.warmup_steps=0", "bits=matquant", "readout.tasks=[piqa]")
    assert launch(tmp_path, *ON_SLURM, *study, "--wait", check=False).returncode == 1
    wait_for_end(tmp_path)
    ended = {stage: item for (_, stage), item in items(tmp_path, *ON_SLURM, *study).items()}
    assert ended["train"]["reason"] == "non-finite"
    assert "lower base.lr" in ended["train"]["note"]
    assert ended["evaluate"]["state"] == "missing"
    log = Path(ended["train"]["submission"]["log"])
    assert "lower base.lr" in log.read_text()
    # Not blindly again, unless it is asked for by name.
    assert "nothing to submit" in launch(tmp_path, *ON_SLURM, *study).stdout
    refused = launch(tmp_path, *ON_SLURM, *study, "--retry-failed").stdout
    assert "nothing to submit" in refused
    assert "remedy: the same cell would fail again" in refused
    assert "submitted 2 jobs" in launch(tmp_path, *ON_SLURM, *study, "--retry-failed=all").stdout
    assert "cancelled" in launch(tmp_path, *ON_SLURM, *study, "--cancel").stdout
    wait_for_end(tmp_path)


def test_what_slurm_refuses_is_said_in_its_words_and_leaves_no_record(tmp_path):
    refused = launch(tmp_path, *ON_SLURM, *QUICK, "cluster.partition=nowhere", check=False)
    assert refused.returncode == 2
    assert "SLURM refused 1 jobs: Batch job submission failed: Invalid partition name specified" in " ".join(
        refused.stderr.split()
    ).replace("invalid partition specified: nowhere; ", "")
    assert "Traceback" not in refused.stderr
    assert not list(tmp_path.glob("runs/*/*.job.json"))


def test_hydra_multirun_through_submitit(tmp_path):
    overrides = [*tiny_overrides(tmp_path), NAME, "readout.tasks=[piqa]", "base=minmax", "bits=int8,int4,int3,int2"]
    done = python("run.py", *ON_HYDRA, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/*/checkpoint/nested.json"))) == 4
    assert len(list(tmp_path.glob("results/*/*/piqa-*.json"))) == 3 + 1 + 1 + 1


def test_a_hydra_job_that_is_preempted_is_requeued_and_goes_on(tmp_path, shared_folder):
    plan = Plan(tmp_path / "moments", [AFTER_A_BLOCK])
    command = [sys.executable, "run.py", *ON_HYDRA, f"hydra.sweep.dir={tmp_path / 'multirun'}"]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*command, *tiny_overrides(tmp_path), NAME, *STUDY],
            cwd=PROJECT,
            env={**variables(), **plan.variables},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    wait(lambda: process.poll() is not None or plan.taken(), "a job to come to its moment", tmp_path)
    (job,) = {line.split()[0] for line in jobs("--format", "%i")}
    ask("scancel", "--signal=USR2", job)
    go_on_when_asked_to_stop(plan, tmp_path)
    wait(lambda: process.poll() is not None, "the end of the multirun", tmp_path)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    assert bits(tmp_path) == undisturbed(shared_folder, "study", *STUDY)
    assert starts_of_stopped_jobs(tmp_path) == [2]
