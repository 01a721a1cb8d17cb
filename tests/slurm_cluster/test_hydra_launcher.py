"""Hydra's own launcher on a real cluster: a refused partition, a point that cannot be and a killed one."""

from __future__ import annotations

from pathlib import Path

from tests.moments import RESULT, Moment, Plan
from tests.processes import Process
from tests.sweeps import start_run

ON_HYDRA = (
    *("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1"),
    *("hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"),
)


def sweep(folder: Path, *arguments: str, plan: Plan | None = None) -> Process:
    """Runs a multirun of four points, two of which cannot be, from its start to its end."""
    points = ("base=minmax", "bits=int8,int4", "weights=uniform,gemma2", "readout.tasks=[]", "readout.plans=[int8]")
    process = start_run(folder, *ON_HYDRA, f"hydra.sweep.dir={folder / 'multirun'}", *points, *arguments, plan=plan)
    process.wait()
    return process


def test_a_refused_partition_is_one_sentence(tmp_path):
    done = sweep(tmp_path, "hydra.launcher.partition=nowhere")
    assert done.returncode == 2, done.told()
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: hydra/launcher=submitit_slurm cannot submit ")
    assert "Invalid partition name specified" in last.replace("invalid partition specified: nowhere", "Invalid")
    assert "Traceback" not in done.stderr


def test_a_killed_point_and_one_that_cannot_be_are_a_sentence_each(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("worker", RESULT, events=("rename",), victims=("worker",))])
    done = sweep(tmp_path, plan=plan)
    assert plan.taken() == [["worker"]]
    assert done.returncode == 2, done.told()
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()
    assert len([line for line in said if line.startswith("refused: ") and "gemma2" in line]) == 2
    (killed,) = [line for line in said if "has failed: job " in line]
    assert "ended without a result (state FAILED); its log is " in killed
    assert Path(killed.rpartition("its log is ")[2]).exists()
    logs = "".join(path.read_text(errors="replace") for path in tmp_path.glob("multirun/.submitit/**/*.out"))
    assert "schema" not in done.stderr + logs
    assert "report: " in done.stdout  # of the points that are left
    assert len(list(tmp_path.glob("results/*/*/log_pplx-*.json"))) >= 1
