"""Submitting on a real cluster: from within a job, to a queue that is full, and by an sbatch whose answer is lost."""

from __future__ import annotations

import shlex
import shutil
import sys

import pytest

from matquant.checkout import PROJECT
from tests.slurm_cluster.conftest import on
from tests.slurm_cluster.sweeping import ON_SLURM, ask, jobs, told, wait, wait_for_end
from tests.sweeps import NAME, launch, states
from tests.tiny import tiny_overrides

pytestmark = pytest.mark.usefixtures("cluster")
BARE = on("bare")
CHEAP = ("base=minmax", "readout.tasks=[piqa]", "readout.perplexity=null")
"""A cell of a few seconds, most of which are its start."""


def test_a_full_queue_is_fed_until_everything_is_there(tmp_path):
    study = (*CHEAP, "cells=[{bits:[int8,int4,int2]}]", "cluster.qos=few")
    dry = launch(tmp_path, *ON_SLURM, *study, "--dry-run").stdout
    assert "the plan: 6 jobs" in dry
    done = launch(tmp_path, *ON_SLURM, *study, "--wait")
    assert "submitted 3 jobs" in done.stdout
    assert "SLURM has no place for 3 more jobs now (QOSMaxSubmitJobPerUserLimit" in done.stdout
    assert "see cluster.qos" in done.stdout
    assert "more jobs; 0 are left" in done.stdout
    assert states(tmp_path, *ON_SLURM, *study) == ["done"] * 6
    wait_for_end(tmp_path)


def test_a_launch_that_does_not_wait_submits_what_has_a_place_and_says_how_to_go_on(tmp_path):
    study = (*CHEAP, "cells=[{bits:[int8,int4]}]", "cluster.account=small", "cluster.sbatch={begin: 'now+1hour'}")
    first = launch(tmp_path, *ON_SLURM, *study, check=False)
    assert first.returncode == 1
    assert "submitted 3 jobs" in first.stdout
    assert "(AssocMaxSubmitJobLimit" in first.stdout
    assert "launch again later, or with --wait" in first.stdout
    assert len(jobs()) == 3
    assert launch(tmp_path, *ON_SLURM, *study, check=False).stdout.count("submitted 0 jobs") == 1
    assert "cancelled 3 jobs" in launch(tmp_path, *ON_SLURM, *study, "--cancel").stdout
    wait_for_end(tmp_path)


@BARE
def test_a_launch_from_within_a_job_and_without_its_environment(tmp_path):
    arguments = [*tiny_overrides(tmp_path / "there"), NAME, *ON_SLURM, *CHEAP, "bits=int4"]
    inner = f"cd {PROJECT} && SBATCH_EXPORT=NONE {shlex.join([sys.executable, '-m', 'matquant', 'launch', *arguments])}"
    ask("sbatch", "--mem-per-cpu=100", f"--output={tmp_path / 'log'}", "--wrap", inner)
    log = tmp_path / "log"
    wait(lambda: log.exists() and "submitted 2 jobs" in log.read_text(), "the launch from within a job", tmp_path)
    wait_for_end(tmp_path)
    assert states(tmp_path / "there", *ON_SLURM, *CHEAP, "bits=int4") == ["done"] * 2, told(tmp_path)


@BARE
def test_jobs_that_were_taken_without_an_answer_are_found_and_not_submitted_again(tmp_path, monkeypatch):
    study = (*CHEAP, "cells=[{bits:[int8,int4]}]", "cluster.sbatch={requeue: false, exclude: null}")
    sbatch, folder = shutil.which("sbatch"), tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(
        f'#!/bin/sh\n{sbatch} "$@" >/dev/null || exit 3\n'
        'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2\nexit 1\n'
    )
    (folder / "sbatch").chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{folder}:/usr/bin", prepend=":")
        assert "submitted 4 jobs" in launch(tmp_path / "there", *ON_SLURM, *study).stdout
    assert "nothing to submit" in launch(tmp_path / "there", *ON_SLURM, *study).stdout
    wait_for_end(tmp_path)
    assert states(tmp_path / "there", *ON_SLURM, *study) == ["done"] * 4, told(tmp_path)
