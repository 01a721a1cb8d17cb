"""Tracking: offline without a key, one run a cell, never in the way."""

from __future__ import annotations

import json

import pytest
import wandb

from matquant.runs.tracking import NoTracker, tracking
from matquant.runs.wandb_run import WandbTracker, wandb_mode


@pytest.fixture
def _no_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.usefixtures("_no_key")
def test_without_a_key_tracking_is_offline_and_with_one_online(monkeypatch, tmp_path):
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode() == "offline"


def test_tracking_none_accepts_everything(tiny_study):
    study = tiny_study()
    with tracking(study.cells[0], study.setup, "cell") as tracker:
        assert isinstance(tracker, NoTracker)
        tracker.log({"loss": 1.0})
        tracker.summarize({"acc": 0.5})


def test_a_cell_is_one_offline_run_with_its_config_curves_and_summary(tiny_study):
    study = tiny_study("tracking=wandb")
    cell = study.cells[0]
    with tracking(cell, study.setup, "train") as tracker:
        assert isinstance(tracker, WandbTracker)
        assert tracker.run.id == cell.id
        assert tracker.run.group == study.name
        assert tracker.run.job_type == "train"
        assert tracker.run.config["base"] == json.loads(cell.model_dump_json())["base"]
        tracker.log({"train/int2": 1.5})
        tracker.summarize({"eval/int2/log_pplx/log_pplx": 6.6})
        assert tracker.run.summary["train/int2"] == 1.5
        assert tracker.run.summary["eval/int2/log_pplx/log_pplx"] == 6.6
    wandb.teardown()  # ends W&B's own process, which writes its last bytes after `finish` has returned
    (written,) = (study.setup.paths.runs / cell.id).glob("wandb/offline-run-*/run-*.wandb")
    assert cell.id in written.name
    assert written.stat().st_size > 500
