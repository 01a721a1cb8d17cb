"""Sweeps on a real cluster: what tests launch there, ask it, and wait for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.moments import BLOCK, Moment, Plan
from tests.processes import wait_until
from tests.sweeps import items, launch, logs

SIGNAL_DELAY_S = 600
ON_SLURM = (
    *("cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1", "cluster.mem_gb_per_task=1"),
    *("cluster.time_min=60", f"cluster.signal_delay_s={SIGNAL_DELAY_S}"),
)
AFTER_A_BLOCK = Moment("worker", BLOCK, 2, events=("rename",), hold=True)


def ask(*command: str) -> str:
    """The output of a command of SLURM's."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def jobs(*options: str) -> list[str]:
    """The lines of SLURM's queue."""
    return ask("squeue", "--noheader", "--array", *options).split("\n")[:-1]


def told(folder: Path) -> str:
    """The state of everything: the queue, the jobs, their states and the ends of their logs."""
    return "\n".join([ask("squeue", "--long"), ask("scontrol", "show", "job"), logs(folder)])


def wait(happened: Callable[[], object], what: str, folder: Path) -> None:
    """Waits for something to happen on the cluster; fails with the state of everything if it does not."""
    wait_until(happened, what, told=lambda: told(folder))


def wait_for_end(folder: Path) -> None:
    """Waits until no job is in the queue."""
    wait(lambda: not jobs(), "the end of all jobs", folder)


def held(folder: Path, *study: str, at: Moment = AFTER_A_BLOCK) -> Plan:
    """Launches a study, whose training is then held at a moment."""
    plan = Plan(folder / "moments", [at])
    launch(folder, *ON_SLURM, *study, plan=plan)
    plan.wait_for(told=lambda: told(folder))
    return plan


def training(folder: Path, *study: str) -> dict:
    (found,) = [item for (_, stage), item in items(folder, *ON_SLURM, *study).items() if stage == "train"]
    return found


def job_id(folder: Path, *study: str) -> str:
    return training(folder, *study)["submission"]["job_id"]


def stopped(folder: Path) -> list[str]:
    """The logs of the jobs, or ranks, that were asked to stop."""
    found = [path.read_text() for path in folder.rglob("*.out")]
    return [log for log in found if "asked to stop" in log]


def starts_of_stopped_jobs(folder: Path) -> list[int]:
    """The number of starts of every job that was asked to stop."""
    return [log.count("Starting with JobEnvironment") for log in stopped(folder)]


def go_on_when_asked_to_stop(plan: Plan, folder: Path) -> None:
    """Lets a held job go on as soon as SLURM's signal has come, so that it stops at its next safe point.

    Of several ranks the one that is held receives the signal first: the others wait for it, and receive theirs later.
    """
    wait(lambda: stopped(folder), "SLURM's signal", folder)
    plan.go_on()
