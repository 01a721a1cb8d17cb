"""trackio: the second tracker, behind the same four calls; its package is a STAND-IN here, unless it is installed."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evaluation.planning import preflight
from matquant.errors import UserError
from matquant.runs import trackio_run
from matquant.runs.tracked.artifacts import Artifact
from matquant.runs.tracking import tracking
from matquant.runs.trackio_run import require_trackio


class Run:
    """A run of the stand-in, which keeps what it is told."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.logged, self.artifacts, self.used = given, list[dict[str, Any]](), list[Any](), list[str]()
        self.is_finished = False

    def log(self, metrics: dict[str, Any]) -> None:
        self.logged.append(metrics)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def use_artifact(self, name: str) -> None:
        if name not in {artifact.name for artifact in self.artifacts}:
            raise ValueError(f"Artifact {name!r} not found")
        self.used.append(name)

    def finish(self) -> None:
        print("* Run finished")
        self.is_finished = True


class Kept:
    """An artifact of the stand-in."""

    def __init__(self, name: str, kind: str, metadata: dict[str, Any]) -> None:
        self.name, self.kind, self.metadata = name, kind, metadata
        self.files, self.references = dict[str, Path](), dict[str, str]()

    def add_file(self, path: Path, name: str) -> None:
        self.files[name] = path

    def add_reference(self, uri: str, name: str, checksum: bool) -> None:
        assert not checksum
        self.references[name] = uri


@pytest.fixture
def runs(monkeypatch) -> list[Run]:
    """The runs that the stand-in for trackio has started."""
    started: list[Run] = []

    def init(project: str, **given: Any) -> Run:
        print("* Trackio project initialized")
        started.append(Run({"project": project, **given}))
        return started[-1]

    module = ModuleType("trackio")
    for name, value in {"init": init, "Artifact": Kept, "Table": lambda **given: given, "Histogram": dict}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr(trackio_run, "find_spec", lambda _: object())
    return started


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("large", "small")}
    for path, size in zip(found.values(), (2000, 10), strict=True):
        path.write_bytes(bytes(size))
    return found


def test_a_cell_is_a_run_with_curves_a_table_of_final_numbers_and_files(runs, tiny_study, files, capsys):
    study = tiny_study("tracking=trackio", "tracking.upload_mb=0.001", "base=none")
    cell = study.one_cell()
    source = Artifact("it-checkpoint", "model", {"small": files["small"]})
    with tracking(cell, study.setup, "cell") as tracker:
        tracker.log({"train/int2": 1.0, "train/histogram": [3, 1]})
        tracker.summarize({"int2/log_pplx": 6.6})
        tracker.log({"results": [{"plan": "int2", "value": 6.6}]})
        tracker.keep(Artifact("it-results", "results", files, {"cell_id": cell.id}, (source,)))
        assert not runs[0].artifacts  # no cell waits for files
    (run,) = runs
    assert run.is_finished
    assert run.given["project"] == "matquant"
    assert run.given["name"] == f"unquantized · tiny · {cell.id[-8:]}"
    assert run.given["config"]["cell_id"] == cell.id
    assert (run.given["group"], run.given["resume"]) == (study.name, "allow")
    curve, results, summary = run.logged
    assert curve["train/int2"] == 1.0
    assert list(curve["train/histogram"]["np_histogram"][0]) == [3, 1]
    assert results == {"results": {"columns": ["plan", "value"], "data": [["int2", 6.6]]}}
    assert summary == {"summary": {"columns": ["name", "value"], "data": [["int2/log_pplx", 6.6]]}}
    checkpoint, kept = run.artifacts
    assert run.used == [checkpoint.name] == ["it-checkpoint"]
    assert (set(kept.files), kept.references) == ({"small"}, {"large": files["large"].as_uri()})
    assert capsys.readouterr().out == ""


def test_without_the_package_a_study_is_refused_and_a_job_runs_untracked(tiny_study, monkeypatch, caplog):
    monkeypatch.setattr(trackio_run, "find_spec", lambda _: None)
    study = tiny_study("tracking=trackio", "base=none", "readout.tasks=[piqa]")
    with pytest.raises(UserError, match=r"^tracking=trackio .*; pip install 'trackio>=0\.43', or set tracking=none$"):
        preflight.check([study])
    with tracking(study.one_cell(), study.setup, "cell") as tracker:
        tracker.log({"loss": 1.0})
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("matquant")]
    assert "pip install 'trackio>=0.43'" in said
    assert said.endswith("the run goes on, and tracking=none leaves trackio out")


def test_a_tracker_that_nobody_chose_is_not_asked_for(tiny_study, monkeypatch):
    monkeypatch.setattr(trackio_run, "find_spec", lambda _: None)
    preflight.check_tracking(tiny_study().setup)


def test_an_entity_is_refused_where_there_is_none(tiny_study):
    with pytest.raises(UserError, match=r"entity=somebody .*; set tracking\.entity=null"):
        tiny_study("tracking=trackio", "tracking.entity=somebody")


def test_the_database_of_the_real_package_holds_a_cell_that_was_interrupted_as_one_run(
    tiny_study, tmp_path, monkeypatch
):
    pytest.importorskip("trackio", reason="an optional package: pip install 'trackio>=0.43'")
    require_trackio()
    from trackio import sqlite_storage, utils  # type: ignore[reportMissingImports]

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)
    study = tiny_study("tracking=trackio", "base=none")
    for value in (2.0, 1.0):
        with tracking(study.one_cell(), study.setup, "cell") as tracker:
            tracker.log({"train/loss": value})
    with sqlite3.connect(tmp_path / "matquant.db") as database:
        rows = database.execute("select run_id, step, metrics from metrics order by step").fetchall()
    assert len({run_id for run_id, _, _ in rows}) == 1
    assert [(step, json.loads(metrics)["train/loss"]) for _, step, metrics in rows] == [(0, 2.0), (1, 1.0)]
