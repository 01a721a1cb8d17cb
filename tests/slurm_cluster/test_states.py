"""How jobs end, or do not begin, on a real cluster: each has its own reason, and is tried again or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm_cluster.conftest import on
from tests.slurm_cluster.sweeping import ON_SLURM, ask, jobs, training, wait_for_end
from tests.sweeps import launch, states

pytestmark = [pytest.mark.usefixtures("cluster"), on("limits", "bare")]
CHEAP = (*ON_SLURM, "base=minmax", "bits=int4", "readout.tasks=[piqa]", "readout.perplexity=null")


def ended(folder: Path, *study: str) -> dict:
    """The training of a launch that ends without it."""
    assert launch(folder, *CHEAP, *study, "--wait", check=False).returncode == 1
    wait_for_end(folder)
    return training(folder, *CHEAP, *study)


def test_a_setup_that_fails_is_not_tried_again_unasked(tmp_path):
    setup = "cluster.setup=['echo no such module','exit 3']"
    found = ended(tmp_path, setup)
    assert found["reason"] == "setup failed"
    assert "ended with status 3 before Python started: no such module" in found["note"]
    assert "nothing to submit" in launch(tmp_path, *CHEAP, setup).stdout


def test_what_crashes_in_the_same_way_twice_is_not_submitted_a_third_time(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os\nif 'SLURM_PROCID' in os.environ:\n    os.abort()\n")
    setup = f"cluster.setup=['export PYTHONPATH={tmp_path}']"
    for _ in range(2):
        found = ended(tmp_path, setup)
        assert found["reason"] == "crashed"
        assert "Aborted" in found["note"]
    third = launch(tmp_path, *CHEAP, setup).stdout
    assert "nothing to submit" in third
    assert "it has ended in this way twice: read the log, then --retry-failed" in third


def test_a_job_that_can_never_start_is_not_waited_for_and_is_replaced_when_it_is_mended(tmp_path):
    if "short" not in ask("scontrol", "show", "partition"):
        ask("scontrol", "create", "partition=short", "nodes=ALL", "maxtime=1")
    stuck = launch(tmp_path, *CHEAP, "cluster.partition=short", "--wait", check=False)
    assert stuck.returncode == 1
    assert "train: cannot start" in stuck.stdout
    assert "(SLURM says Partition" in stuck.stdout  # ...TimeLimit or, without limits of accounts, ...Config
    assert len(jobs()) == 2
    assert "nothing to submit" in launch(tmp_path, *CHEAP, "cluster.partition=main").stdout
    launch(tmp_path, *CHEAP, "cluster.partition=main", "--retry-failed", "--wait")
    assert states(tmp_path, *CHEAP) == ["done"] * 2
    wait_for_end(tmp_path)
