"""Twenty kills at random moments of a sweep, and its results are those of a run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from matquant.runs import PROJECT
from tests.sweeps import NAME, SLOW, bits, launch, leftovers, run_here, states, variables
from tests.tiny import tiny_overrides

STUDY = (*SLOW, "base.num_steps=60", "readout.tasks=[piqa,winogrande]", "readout.limit=12", "cluster.evaluate_jobs=2")
NUM_KILLS = 20


def processes(folder: Path) -> list[psutil.Process]:
    """The launcher, the controllers and the workers of one folder's sweep: whoever names it in a command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words) and process.pid != psutil.Process().pid:
            found.append(process)
    return found


def disturb(folder: Path, draw: random.Random, kills: int) -> int:
    """Kills at random moments, until the sweep is over or that many have hit; returns how many have."""
    command = [sys.executable, "-m", "slurm.launch", *tiny_overrides(folder), NAME, *STUDY]
    quiet = {"cwd": PROJECT, "env": variables(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    hits, launcher = 0, subprocess.Popen(command, **quiet)
    while hits < kills:
        # More often one process than all of them: a launcher without workers, a worker without its launcher.
        time.sleep(draw.uniform(0.5, 8.0))
        alive = processes(folder)
        for victim in alive if draw.random() < 0.3 else draw.sample(alive, min(1, len(alive))):
            try:
                victim.send_signal(signal.SIGKILL)
                hits += 1
            except psutil.NoSuchProcess:
                pass
        if launcher.poll() is not None:
            if launcher.returncode == 0 and set(states(folder, *STUDY)) == {"done"}:
                break
            launcher = subprocess.Popen(command, **quiet)
    launcher.wait(timeout=400)
    return hits


@pytest.mark.timeout(1200)
def test_twenty_kills_at_random_moments_change_no_bit_and_leave_nothing_behind(tmp_path):
    expected = run_here(tmp_path / "undisturbed", *STUDY)
    draw, kills, sweeps = random.Random(0), 0, 0
    while kills < NUM_KILLS:  # a sweep can be over before it has been hit often
        folder = tmp_path / f"disturbed-{sweeps}"
        kills += disturb(folder, draw, NUM_KILLS - kills)
        sweeps += 1
        launch(folder, *STUDY)
        assert set(states(folder, *STUDY)) == {"done"}
        assert bits(folder) == expected
        assert not leftovers(folder)
