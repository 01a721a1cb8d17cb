"""Tracking: offline without a key, one run a cell, never in the way.

Servers are STAND-INs on this machine (tests/wandb_stand_in.py), and W&B's package is the real one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import wandb

import run
from evaluation.protocol import missing
from evaluation.results.store import ResultStore
from matquant.runs import wandb_run
from matquant.runs.tracked.artifacts import Artifact
from matquant.runs.tracked.limits import within
from matquant.runs.tracked.wandb_mode import wandb_mode
from matquant.runs.tracking import Guarded, NoTracker, tracking
from matquant.runs.wandb_run import MAX_ID, WandbTracker, run_id, unreachable
from tests.wandb_stand_in import StandIn, stand_in

KEY = "0" * 40


@pytest.fixture
def _no_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def online(monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment of a person with a key; the server is still to be named."""
    mine = {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false", "NO_PROXY": "127.0.0.1"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it remembers the environment of the tests before
    yield monkeypatch
    wandb.teardown()


@pytest.fixture
def server(online) -> Iterator[StandIn]:
    with stand_in() as state:
        online.setenv("WANDB_BASE_URL", state.url)
        yield state


def words(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Everything that this program has said, without W&B's own words."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("matquant")]


def closed_port() -> str:
    """The address of a port where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def sync(*folders: object, is_whole: bool = True) -> None:
    """Uploads runs with the command that the sentences name.

    W&B says `ERROR No response.` at the end of one that was cut while it sent files, though all of it has arrived.
    """
    command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    finished = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "ERROR" not in finished.stderr or not is_whole


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_key")
def test_without_a_key_tracking_is_offline_and_with_one_online(monkeypatch, tmp_path):
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode() == "offline"  # the key is another server's
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password x")
    assert wandb_mode() == "online"
    (tmp_path / "netrc").write_text("not a netrc file")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert wandb_mode() == "offline"


def test_a_mode_that_does_not_exist_is_said_and_counts_as_offline(tiny_study, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "foo")
    study = tiny_study("tracking=wandb")
    with tracking(study.cells[0], study.setup, "cell") as tracker:
        assert tracker.inside.run.settings.mode == "offline"
    (said,) = words(caplog)
    assert said.startswith("WANDB_MODE=foo is not a mode of W&B")


def test_tracking_none_accepts_everything(tiny_study):
    study = tiny_study()
    with tracking(study.cells[0], study.setup, "cell") as tracker:
        assert isinstance(tracker, NoTracker)
        tracker.log({"loss": 1.0})
        tracker.summarize({"acc": 0.5})


def test_the_id_of_a_run_is_the_cells_and_a_long_one_is_cut_before_a_digest():
    assert run_id("tiny-minmax-int8-2d79b07a") == "tiny-minmax-int8-2d79b07a"
    assert run_id("x" * MAX_ID) == "x" * MAX_ID
    ids = {run_id("x" * 60 + f"-omniquant-matquant-{number}") for number in range(9)}
    assert len(ids) == 9
    assert {len(one) for one in ids} == {MAX_ID}


# --- offline ----------------------------------------------------------------------------------------------------------


def test_a_cell_is_one_offline_run_with_its_config_curves_and_summary(tiny_study):
    study = tiny_study("tracking=wandb")
    cell = study.cells[0]
    with tracking(cell, study.setup, "train") as tracker:
        assert isinstance(tracker, Guarded)
        inside = tracker.inside
        assert isinstance(inside, WandbTracker)
        assert inside.run.id == cell.id
        assert inside.run.group == study.name
        assert inside.run.job_type == "train"
        assert inside.run.config["base"] == json.loads(cell.model_dump_json())["base"]
        tracker.log({"train/int2": 1.5})
        tracker.summarize({"int2/log_pplx": 6.6})
        assert inside.run.summary["train/int2"] == 1.5
        assert inside.run.summary["int2/log_pplx"] == 6.6
    (written,) = (study.setup.paths.runs / cell.id).glob("wandb/offline-run-*/run-*.wandb")
    assert cell.id in written.name
    assert written.stat().st_size > 500


def test_offline_runs_of_one_cell_are_synced_into_one_whole_run(tiny_study, online):
    study = tiny_study("tracking=wandb")
    cell = study.cells[0]
    online.setenv("WANDB_MODE", "offline")
    (study.setup.paths.runs / "file").parent.mkdir()
    (study.setup.paths.runs / "file").write_text("content")
    made = Artifact("it-checkpoint", "model", {"file": study.setup.paths.runs / "file"})
    results = replace(made, name="it-results", kind="results", made_from=(made,))
    for job, values, kept in (("train", (3.0, 2.0, 1.0), made), ("evaluate", (9.0, 8.0), results)):
        with tracking(cell, study.setup, job) as tracker:
            for value in values:
                tracker.log({job: value})
            tracker.keep(kept)
    folders = list((study.setup.paths.runs / cell.id / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    with stand_in() as server:
        online.setenv("WANDB_BASE_URL", server.url)
        sync(*folders)
    rows = server.rows[cell.id]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["train"] for row in rows[:3]] == [3.0, 2.0, 1.0]
    assert [row["evaluate"] for row in rows[3:]] == [9.0, 8.0]
    versions = {version.name: version for version in server.artifacts.versions}
    assert set(versions) == {"it-checkpoint", "it-results"}
    assert {version.made_by for version in versions.values()} == {cell.id}
    assert versions["it-checkpoint"].used_by == [cell.id]
    assert versions["it-checkpoint"].files == {"file": b"content"}


# --- servers ----------------------------------------------------------------------------------------------------------


def test_an_online_run_arrives_and_nothing_is_said(tiny_study, server, caplog):
    study = tiny_study("tracking=wandb")
    with tracking(study.cells[0], study.setup, "cell") as tracker:
        assert tracker.inside.run.settings.mode == "online"
        tracker.log({"loss": 1.0})
    assert [row["loss"] for row in server.rows[study.cells[0].id]] == [1.0]
    assert words(caplog) == []


@pytest.mark.parametrize("fault", ["closed", "shared", "hangs", 401, 404, 500])
def test_a_server_that_does_not_take_a_run_costs_one_sentence(tiny_study, server, online, caplog, fault):
    """Two cells, because what is left of the first one must not stand in the way of the second."""
    online.setattr(wandb_run, "PROBE_S", 0.3)
    if fault in ("closed", "shared"):
        online.setenv("WANDB_MODE", "shared" if fault == "shared" else "online")
        online.setenv("WANDB_BASE_URL", closed_port())
    elif fault == "hangs":
        server.may_answer.clear()
    else:
        server.error = fault
    study = tiny_study("tracking=wandb", "base=none")
    for cell in (study.cells[0], tiny_study("base=none", "model.seed=1").cells[0]):
        caplog.clear()
        with tracking(cell, study.setup, "cell") as tracker:
            assert tracker.inside.run.settings.mode == "offline"
            tracker.log({"loss": 1.0})
        (said,) = words(caplog)
        assert said.startswith("W&B ")
        assert f": tracking {cell.id} offline; upload it later with `wandb sync " in said
    if fault != 401:  # the upload is the same for all
        return
    server.error = None
    sync(re.search(r"`wandb sync (.*)`", said)[1])
    assert [row["loss"] for row in server.rows[cell.id]] == [1.0]


@pytest.mark.parametrize(
    ("keeps", "reason"), [(False, "Timed out finishing run"), (True, "no answer within 4 s")], ids=["numbers", "files"]
)
def test_a_server_that_falls_silent_holds_no_cell_and_its_run_can_be_uploaded(
    tiny_study, server, online, caplog, tmp_path, keeps, reason
):
    online.setattr(wandb_run, "FINISH_S", 1)
    study = tiny_study("tracking=wandb")
    cell = study.cells[0]
    (tmp_path / "file").write_text("")
    with tracking(cell, study.setup, "cell") as tracker:
        online.setattr(wandb_run, "LOG_S", 3)
        server.may_answer.clear()
        tracker.log({"loss": 1.0})
        if keeps:
            tracker.keep(Artifact("it", "model", {"file": tmp_path / "file"}))
    (said,) = words(caplog)
    assert said.startswith(f"W&B failed ({reason})")
    server.may_answer.set()
    # Every further cell would wait as long.
    assert unreachable() == f"at {server.url} fell silent during an earlier run"
    server.rows.clear()
    server.artifacts.versions.clear()
    sync("--include-online", re.search(r"`wandb sync --include-online (.*)`", said)[1], is_whole=not keeps)
    assert [row["loss"] for row in server.rows[cell.id]] == [1.0]
    assert [version.name for version in server.artifacts.versions] == ["it"] * keeps


def test_a_cell_is_measured_while_no_server_answers(tiny_study, online):
    online.setenv("WANDB_BASE_URL", closed_port())
    made = tiny_study("tracking=wandb", "base=none", "readout.tasks=[piqa]", "readout.limit=1")
    (cell,) = made.cells
    run.run_cell(cell, made.setup)
    assert not missing(cell, made.setup.readout, ResultStore(made.setup.paths.results))


def test_a_proxy_is_asked_for_a_server_that_only_it_can_reach(server, online):
    online.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    online.delenv("NO_PROXY")
    online.setenv("http_proxy", server.url)
    assert unreachable() is None
    server.error = 503
    assert unreachable() == "at http://wandb.invalid answers with error 503"


# --- failures ---------------------------------------------------------------------------------------------------------


class Breaking:
    """A tracker that raises an error where it is told to."""

    title, upload = "W&B", "wandb sync runs/cell"

    def __init__(self, place: str, error: BaseException) -> None:
        self.place, self.error = place, error
        self.calls: list[str] = []

    def _do(self, name: str) -> None:
        self.calls.append(name)
        if name == self.place:
            raise self.error

    def log(self, metrics) -> None:
        self._do("log")

    def summarize(self, metrics) -> None:
        self._do("summarize")

    def keep(self, artifact) -> None:
        self._do("keep")

    def finish(self) -> None:
        self._do("finish")


def use(tracker: Guarded) -> None:
    for number in range(3):
        tracker.log({"loss": number})
    tracker.summarize({"acc": 1.0})
    tracker.keep(Artifact("cell-results", "results", {}))
    tracker.finish()
    tracker.finish()


@pytest.mark.parametrize("place", ["log", "summarize", "keep", "finish"])
@pytest.mark.parametrize("error", [ValueError("too\nlarge"), TimeoutError("too\nlarge"), wandb.Error("too\nlarge")])
def test_the_first_failure_ends_tracking_with_one_sentence(place, error, caplog):
    inside = Breaking(place, error)
    use(Guarded("cell", "W&B", lambda: inside))
    assert inside.calls.count(place) <= 2  # `finish` once more, to complete the files
    assert inside.calls[-1] == (place if isinstance(error, TimeoutError) else "finish")
    (said,) = words(caplog)
    assert said == (
        "W&B failed (too large): cell goes on untracked; upload what was tracked until then with `wandb sync runs/cell`"
    )


def test_a_tracker_that_cannot_be_opened_is_one_sentence(caplog):
    def refuse():
        raise ModuleNotFoundError("No module named 'wandb'")

    use(Guarded("cell", "W&B", refuse))
    (said,) = words(caplog)
    assert said == "cell is not tracked (No module named 'wandb'); the run goes on, and tracking=none leaves W&B out"


@pytest.mark.parametrize("place", ["log", "summarize", "keep", "finish"])
def test_a_request_to_stop_passes(place):
    with pytest.raises(KeyboardInterrupt):
        use(Guarded("cell", "W&B", lambda: Breaking(place, KeyboardInterrupt())))


def test_a_call_has_a_time_limit_and_keeps_its_result_and_its_error():
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        within(0.01, never.wait)
    never.set()
    assert within(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="SystemExit"):
        within(60, sys.exit)  # ends no program from a thread


def test_a_broken_package_or_setting_of_wandb_costs_no_run(tiny_study, monkeypatch, caplog):
    study = tiny_study("tracking=wandb")
    for broken in ("package", "setting", "folder"):
        caplog.clear()
        with monkeypatch.context() as patch:
            if broken == "package":
                patch.setitem(sys.modules, "wandb", None)
            elif broken == "setting":
                patch.setenv("WANDB_INIT_TIMEOUT", "soon")
            else:
                patch.setattr(wandb, "init", lambda **_: Path("/proc/nowhere/wandb").write_text(""))
            with tracking(study.cells[0], study.setup, "cell") as tracker:
                use(tracker)
        (said,) = words(caplog)
        assert said.startswith(f"{study.cells[0].id} is not tracked (")
