"""A job knows what it may use, how often it may start, and what it leaves behind when it may not go on."""

from __future__ import annotations

import signal

import pytest
import submitit
from submitit.core.utils import UncompletedJobError

from evaluation.stages import EVALUATE, TRAIN
from matquant.runs.folder import RunDir
from matquant.runs.status import read_status
from slurm.jobs import Job


def made(tiny_study, *overrides: str, stage=TRAIN) -> Job:
    study = tiny_study("cluster=slurm", *overrides)
    return Job(study.cells[0], study.setup, stage)


def test_a_job_that_has_started_too_often_ends_as_a_time_limit(tiny_study, monkeypatch):
    job = made(tiny_study, "base=minmax", "bits=int8", "cluster.max_requeues=2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: type("Environment", (), {"num_tasks": 1, "global_rank": 0}))
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with pytest.raises(UncompletedJobError, match=r"started again 3 times \(cluster.max_requeues=2\)"):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    run = RunDir(job.setup.paths.runs, job.cell.id)
    status = read_status(run.status("train"))
    assert status is not None
    assert (status.state, status.reason) == ("failed", "time limit")
    assert not run.checkpoint.exists()


@pytest.mark.parametrize(
    ("overrides", "stage", "num_gpus"),
    [
        (("base=qat", "base.batch_size=4"), TRAIN, 4),
        (("base=qat", "base.batch_size=4"), EVALUATE, 1),
        (("base=omniquant", "base.batch_size=2"), TRAIN, 1),
        (("base=omniquant", "base.batch_size=2", "cluster.gpus_per_node=0"), TRAIN, 0),
    ],
)
def test_qat_is_spread_over_the_gpus_of_a_node_and_everything_else_takes_one(tiny_study, overrides, stage, num_gpus):
    assert made(tiny_study, "cluster.gpus_per_node=4", *overrides, stage=stage).num_gpus == num_gpus


def test_a_job_that_is_requeued_is_the_job_itself(tiny_study):
    job = made(tiny_study, "base=minmax", "bits=int8")
    assert job.checkpoint().function == job
