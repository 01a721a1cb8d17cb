"""Hydra's sweepers and launchers, whole: Optuna, jobs of submitit, points that are killed or bad, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest

from tests.moments import RESULT, Moment, Plan
from tests.sweeps import start_run
from tests.tiny import TINY_OMNIQUANT

LOCALLY = "hydra/launcher=submitit_local"


def sentences(text: str) -> list[str]:
    """The lines of a log without bars and submitit's own."""
    return [line for line in text.splitlines() if "it/s" not in line and "answers/s" not in line]


def test_a_killed_and_a_bad_point_are_one_sentence_each_and_the_others_are_measured(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("worker", RESULT, events=("rename",), victims=("worker",))])
    words = [
        "base=minmax",
        "readout.tasks=[]",
        "bits=int8,int4",
        "grid=group_32,per_channel",
        "objective=int8/log_pplx",
    ]
    process = start_run(
        tmp_path, "-m", LOCALLY, f"hydra.sweep.dir={tmp_path / 'jobs'}", *words, "readout.plans=[int8]", plan=plan
    )
    assert process.wait() == 2
    assert plan.taken() == [["worker"]]
    said = sentences(process.stderr)
    assert "Traceback" not in process.stderr
    assert "schema" not in process.stderr + "".join(
        path.read_text() for path in tmp_path.glob("jobs/.submitit/*/*.out")
    )
    assert len([line for line in said if line.startswith("point ") and "has failed" in line]) == 1
    (killed,) = [line for line in said if "ended without a result (killed); its log is " in line and "has" in line]
    assert os.path.exists(killed.rpartition("its log is ")[2])
    assert len([line for line in said if line.startswith("refused: ") and "is not read at int8" in line]) == 2
    assert len(list(tmp_path.glob("results/*/int8/log_pplx-*.json"))) == 1  # of the job that was not killed
    assert (tmp_path / "out/sweep/report.html").exists()


def test_ctrl_c_says_what_is_left_and_loses_nothing(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("run", RESULT, count=2, events=("rename",), hold=True)])
    words = ["-m", "base=minmax", "readout.tasks=[]", "bits=int8,int4,int2", "readout.plans=[int8,int4]"]
    process = start_run(tmp_path, *words, plan=plan)
    plan.wait_for(by=process)
    process.send_signal(signal.SIGINT)
    plan.go_on()
    assert process.wait() == 130
    assert "0 of 3 points have ended, 3 are left" in process.stderr
    assert "the same command continues" in process.stderr
    start_run(tmp_path, *words).check()
    assert len(list(tmp_path.glob("results/*/*/log_pplx-*.json"))) == 2 + 1 + 1


def test_after_ctrl_c_the_jobs_of_this_machine_go_on_and_the_command_that_ends_them_is_said(tmp_path):
    plan = Plan(tmp_path / "moments", [Moment("worker", RESULT, events=("rename",), hold=True)])
    words = ["-m", LOCALLY, f"hydra.sweep.dir={tmp_path / 'jobs'}", "base=minmax", "bits=int8", "readout.tasks=[]"]
    process = start_run(tmp_path, *words, "readout.plans=[int8]", plan=plan, apart=True)
    plan.wait_for(by=process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to its whole foreground group
    assert process.wait() == 130
    (worker,), (controller,) = plan.alive("worker"), plan.alive("controller")
    (said,) = re.findall(r"their jobs go on: processes (\d+); `(kill .*)` ends them", process.stderr)
    assert said == (str(controller), f"kill -INT {controller}")
    assert os.getsid(worker) == controller
    subprocess.run(said[1].split(), check=True)
    plan.wait_for_end("controller", "worker")
    assert not list(tmp_path.glob("results/*/int8/log_pplx-*.json"))


@pytest.mark.filterwarnings("ignore")
def test_optuna_searches_for_the_best_objective(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install hydra-optuna-sweeper")
    space = ["bits=choice(int2,int4,matquant)", "base.num_steps=int(interval(1,3))", "objective=int2/log_pplx"]
    search = ["hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    omniquant = [word for word in TINY_OMNIQUANT if not word.startswith("base.num_steps")]
    process = start_run(tmp_path, "-m", "hydra/sweeper=optuna", *omniquant, *space, *search, "readout.tasks=[]")
    assert process.wait() == 0, process.told()
    assert "best: int2/log_pplx" in process.stdout
    assert "is not read at int2" in process.stderr  # bits=int4: refused, and the sweep goes on
    assert (tmp_path / "sweep/optimization_results.yaml").exists()
    assert (tmp_path / "out/sweep/report.html").exists()


def test_optuna_needs_an_objective_in_its_direction(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install hydra-optuna-sweeper")
    words = ["-m", "hydra/sweeper=optuna", "base=minmax", "bits=choice(int2,int4)"]
    process = start_run(tmp_path, *words)
    assert process.wait() == 2
    assert process.stderr.splitlines()[-1].endswith("name it, such as objective=int2/log_pplx")
    process = start_run(tmp_path, *words, "objective=int2/task_avg")
    assert process.wait() == 2
    assert "add hydra.sweeper.direction=maximize" in process.stderr
