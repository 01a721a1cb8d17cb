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


@pytest.mark.timeout(1200)
def test_twenty_kills_at_random_moments_change_no_bit_and_leave_nothing_behind(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    expected = run_here(undisturbed, *STUDY)
    command = [sys.executable, "-m", "slurm.launch", *tiny_overrides(disturbed), NAME, *STUDY]
    draw, kills = random.Random(0), 0
    quiet = {"cwd": PROJECT, "env": variables(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launcher = subprocess.Popen(command, **quiet)
    while kills < NUM_KILLS:
        # More often one process than all of them: a launcher without workers, a worker without its launcher.
        time.sleep(draw.uniform(0.5, 12.0))
        alive = processes(disturbed)
        for victim in alive if draw.random() < 0.3 else draw.sample(alive, min(1, len(alive))):
            try:
                victim.send_signal(signal.SIGKILL)
                kills += 1
            except psutil.NoSuchProcess:
                pass
        if launcher.poll() is not None:
            launcher = subprocess.Popen(command, **quiet)
    launcher.wait(timeout=400)
    launch(disturbed, *STUDY)
    assert set(states(disturbed, *STUDY)) == {"done"}
    assert bits(disturbed) == expected
    assert not leftovers(disturbed)
