"""Hydra's launcher for SLURM asks and submits as `matquant launch` does, whatever the environment says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slurm import hydra_points
from slurm.hydra_points import SlurmLauncher, _is_gone

SHOWS_RUNNING_JOBS_ONLY = """#!/bin/sh
[ -n "$SQUEUE_STATES" ] && exit 0
echo "17_0|{state}|None|me|N/A|account|normal|run"
"""


@pytest.fixture
def submitted(stand_ins, tmp_path):
    """Submits one point, and gives the variables in which sbatch was called, its options, and its script."""

    def submit(**params: Any) -> tuple[dict[str, str], dict[str, str], str]:
        launcher = SlurmLauncher(submitit_folder=str(tmp_path / "jobs"), name="run", timeout_min=60, **params)
        launcher._submitted([(0, ["base=minmax"])])
        return stand_ins.variables(), stand_ins.options(), stand_ins.scripts[0]

    return submit


@pytest.mark.parametrize(
    ("state", "is_gone"), [("PENDING", False), ("RUNNING", False), ("REQUEUED", False), ("CANCELLED", True)]
)
def test_a_job_in_the_queue_is_not_taken_for_gone_whatever_squeue_is_told_to_show(
    state, is_gone, stand_ins, monkeypatch
):
    monkeypatch.setattr(hydra_points, "GONE_S", 0.0)
    monkeypatch.setenv("SQUEUE_STATES", "R")
    stand_ins.command("squeue", SHOWS_RUNNING_JOBS_ONLY.format(state=state))
    job, absent = SimpleNamespace(job_id="17_0", state="UNKNOWN"), dict[str, float]()
    assert [_is_gone(job, absent, None) for _ in range(3)] == [False, is_gone, is_gone]


@pytest.mark.parametrize(
    ("said", "is_gone"),
    [("Invalid job id specified", True), ("Unable to contact slurm controller", False), ("", True)],
)
def test_a_job_is_gone_where_squeue_has_forgotten_it_and_not_where_it_does_not_answer(
    said, is_gone, stand_ins, monkeypatch
):
    monkeypatch.setattr(hydra_points, "GONE_S", 0.0)
    stand_ins.command("squeue", f'#!/bin/sh\n[ -z "{said}" ] || {{ echo "{said}" >&2; exit 1; }}\n')
    job, absent = SimpleNamespace(job_id="17", state="UNKNOWN"), dict[str, float]()
    assert [_is_gone(job, absent, None) for _ in range(3)] == [False, is_gone, is_gone]


def test_points_see_nothing_of_the_job_that_they_are_submitted_from(submitted, monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_NODE": "100",
        "SLURM_NTASKS": "8",
        "CUDA_VISIBLE_DEVICES": "3",
        "SBATCH_PARTITION": "theirs",
        "SBATCH_QOS": "long",
        "SBATCH_TIMELIMIT": "1",
        "RANK": "0",
        "ONES_OWN": "x",
    }.items():
        monkeypatch.setenv(name, value)
    variables, options, _ = submitted(partition="mine", qos=None)
    assert options["partition"] == "mine"
    assert variables["SBATCH_QOS"] == "long"  # the configuration leaves it open
    assert variables["ONES_OWN"] == "x"
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_NTASKS", "CUDA_VISIBLE_DEVICES", "RANK"):
        assert name not in variables
    assert not {"SBATCH_PARTITION", "SBATCH_TIMELIMIT"} & set(variables)


def test_points_have_their_variables_also_where_sbatch_exports_none(submitted, monkeypatch):
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    monkeypatch.setenv("HF_HOME", "/scratch/me/hf cache")
    variables, _, script = submitted(setup=["module load cuda/12.8"], additional_parameters={"requeue": True})
    assert variables["SBATCH_EXPORT"] == "NONE"
    before = script.index("export HF_HOME='/scratch/me/hf cache'")
    assert before < script.index("module load cuda/12.8") < script.index("\nsrun ")
    assert "--export=ALL" in script.partition("\nsrun ")[2]


def test_an_option_of_the_launcher_comes_before_a_variable(submitted, monkeypatch):
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    monkeypatch.setenv("SBATCH_ACCOUNT", "theirs")
    given = {"export": "ALL", "account": "mine", "mail-type": "END"}
    variables, options, _ = submitted(additional_parameters=given)
    assert given.items() <= options.items()
    assert not {"SBATCH_EXPORT", "SBATCH_ACCOUNT"} & set(variables)
