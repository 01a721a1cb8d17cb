"""W&B's own agent tries cells: the agent is the real one, its server a STAND-IN (tests/wandb_stand_in.py)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from evaluation.stages import check_agent
from matquant.checkout import PROJECT
from matquant.errors import UserError
from matquant.runs.wandb_run import is_of_a_sweep, run_id
from tests.processes import fork, variables
from tests.tiny import tiny_overrides
from tests.wandb_stand_in import ENTITY, stand_in

AGENT = """
import sys, wandb.wandb_agent
wandb.wandb_agent.Agent.POLL_INTERVAL = 0.1
wandb.wandb_agent.agent(sys.argv[1], count=1)
"""
"""`wandb agent --count 1 SWEEP`, which looks more often than every 5 seconds whether a run has ended."""
EXAMPLE = PROJECT / "docs/wandb_sweep.yaml"


def test_a_run_of_the_agent_has_the_agents_id_and_any_other_that_of_its_cell(monkeypatch):
    assert run_id("a-cell") == "a-cell"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert not is_of_a_sweep()  # whoever looks at a sweep has this too
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    assert run_id("a-cell") == "agents"


def test_the_agent_tries_one_cell_a_run(monkeypatch, tiny_study):
    check_agent(tiny_study("tracking=wandb", "cells=[{seed:[0,1]}]"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    check_agent(tiny_study("tracking=wandb"))
    with pytest.raises(UserError, match=r"tries one cell a run, and this command has 2"):
        check_agent(tiny_study("tracking=wandb", "cells=[{seed:[0,1]}]"))
    with pytest.raises(UserError, match=r"leave out -m"):
        check_agent(None)


def test_the_agent_runs_the_example_and_may_try_a_cell_that_was_measured_before(tmp_path):
    sweep = yaml.safe_load(EXAMPLE.read_text())
    assert sweep["metric"]["name"] == "int2/log_pplx_tuning"
    # The example with the tiny model, and this Python.
    typed = [word for word in sweep["command"] if not str(word).startswith("${")]
    assert typed == ["base=omniquant", "bits=matquant", "perplexity=tuning"]
    tiny = [
        *tiny_overrides(tmp_path),
        "base=minmax",
        "bits=matquant",
        "readout.tasks=[]",
        "readout.perplexity.part=tuning",
    ]
    fork("run.py", *tiny).check()
    command = [sys.executable, "${program}", *tiny, "tracking=wandb", "${args_no_hyphens}"]
    with stand_in() as server:
        server.sweep = yaml.safe_dump({**sweep, "command": command})
        args = {"seed": {"value": 1}, "extra_bit": {"value": False}, "distill": {"value": None}}
        server.tries = [{"type": "run", "run_id": "agents", "program": "run.py", "args": args, "id": "agents"}]
        mine = {
            "WANDB_MODE": "online",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": server.url,
            "NO_PROXY": "127.0.0.1",
        }
        quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", AGENT, f"{ENTITY}/matquant/sweep"],
            cwd=PROJECT,
            env={**variables(), **mine, **quiet},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = {name: summary.get("int2/log_pplx_tuning") for name, summary in server.summaries.items()}
    assert set(server.rows) == {"agents"}, done.stderr
    assert found["agents"] > 5, done.stderr
    assert len(list(tmp_path.glob("results/*/int2/log_pplx-*.json"))) == 1
