"""The state of every item follows from the disk and the queue; what to submit follows from the states."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from evaluation.protocol import PlanShare, missing, survey
from evaluation.results.store import Result, ResultStore
from evaluation.stages import EVALUATE, TRAIN, Stage
from matquant.runs.files import write_json
from matquant.runs.folder import RunDir
from matquant.runs.status import Status, process_started
from matquant.search.request import Search
from slurm import plan, wording
from slurm.launch import Options
from slurm.plan import Item, observe
from slurm.records import Submission, write_submission
from slurm.states.known import Known, QueuedJob
from tests.tiny import TINY_GPTQ

ALIVE = Status("running", 100.0, 110.0, socket.gethostname(), os.getpid(), process_started(os.getpid()) or 0.0)
GONE = replace(ALIVE, process_started=1.0)
JOB = Submission("launch-1", "slurm", "launch-1-0", job_id="7", submitted=90.0)
PENDING = QueuedJob("7", "launch-1-0", "PENDING", "Priority")
RUNNING = replace(PENDING, state="RUNNING", reason="None")


def cell_item(study, stage: str = "train", queue: list[QueuedJob] | None = None) -> Item:
    sweep = observe(study, None if queue is None else Known(queue))
    (item,) = [item for item in sweep.items if item.stage.name == stage]
    return item


def put(study, status: Status | None = None, submission: Submission | None = None, stage: str = "train") -> None:
    run = RunDir(study.setup.paths.runs, study.cells[0].id)
    if status is not None:
        write_json(run.status(stage), asdict(status))
    if submission is not None:
        write_submission(run.job(stage), submission)


def put_results(study) -> None:
    """A result of every task of every read-out."""
    store = ResultStore(study.setup.paths.results)
    for cell in study.cells:
        for part, tasks in missing(cell, study.setup.readout, store).items():
            for task, protocol in tasks.items():
                store.put(Result(cell.id, str(part), task, protocol, {"acc": 0.5}, 1, 2.0), {"doc_id": [0]})


@pytest.fixture
def study(tiny_study):
    return tiny_study("base=omniquant", "base.batch_size=2")


MINE = {"launch": "launch-1", "slurm_job": "7"}


@pytest.mark.parametrize(
    ("status", "submission", "queue", "expected"),
    [
        (None, None, None, ("missing", None, "")),
        (ALIVE, None, None, ("running", None, "process")),
        (GONE, None, None, ("failed", "killed", "without a status")),
        (replace(GONE, state="stopped"), None, None, ("failed", "interrupted", "")),
        (
            replace(GONE, state="failed", reason="out of memory", message="m"),
            None,
            None,
            ("failed", "out of memory", "m"),
        ),
        (replace(GONE, state="done"), None, None, ("missing", None, "")),
        # Submitted: the queue is asked first, then the status of this very launch.
        (None, JOB, [PENDING], ("queued", None, "pending: Priority")),
        (None, JOB, [RUNNING], ("running", None, "job 7")),
        (None, replace(JOB, job_id=None), [PENDING], ("queued", None, "pending")),
        (None, JOB, [], ("missing", None, "never started")),
        (replace(GONE, started=80.0, state="failed"), JOB, [], ("missing", None, "never started")),
        (replace(GONE, state="stopped", **MINE), JOB, [PENDING], ("queued", None, "pending")),
        (replace(GONE, **MINE), JOB, [], ("failed", "killed", "without a status")),
        (replace(ALIVE, **MINE), JOB, [], ("running", None, "process")),
        (replace(ALIVE, **MINE), JOB, [RUNNING], ("running", None, "job 7")),
        (replace(GONE, state="failed", reason="non-finite", **MINE), JOB, [], ("failed", "non-finite", "")),
        # Something else that runs after the job has gone.
        (ALIVE, JOB, [], ("running", None, "process")),
        (
            None,
            JOB,
            [replace(PENDING, reason="DependencyNeverSatisfied")],
            ("missing", None, "waits for one that has failed"),
        ),
    ],
)
def test_the_state_of_an_item_follows_from_disk_and_queue(study, status, submission, queue, expected):
    put(study, status, submission)
    item = cell_item(study, queue=queue)
    state, reason, note = expected
    assert (item.state, item.reason) == (state, reason)
    assert note in item.note


@pytest.mark.parametrize(
    ("training", "state"),
    [
        (replace(ALIVE, **MINE), "queued"),
        (replace(GONE, **MINE), "missing"),
        (replace(GONE, state="failed", reason="error", **MINE), "missing"),
        (None, "missing"),
    ],
)
def test_an_evaluation_that_waits_for_a_failed_training_is_missing_whatever_slurm_has_noticed(study, training, state):
    put(study, training, JOB)
    put(study, None, replace(JOB, name="launch-1-1", job_id="8"), stage="evaluate")
    waiting = QueuedJob("8", "launch-1-1", "PENDING", "Dependency")
    at_work = [RUNNING] if state == "queued" else []
    item = cell_item(study, "evaluate", queue=[waiting, *at_work])
    assert (item.state, item.job) == (state, waiting)


def test_an_element_of_an_array_is_found_by_its_place_if_its_number_was_never_noted(study):
    put(study, None, replace(JOB, job_id=None, index=3))
    queue = [replace(PENDING, job_id=f"9_{index}") for index in (1, 2, 3)]
    assert cell_item(study, queue=queue).state == "queued"
    assert cell_item(study, queue=queue[:2]).state == "missing"


def test_a_cell_whose_results_are_there_needs_neither_training_nor_checkpoint(study):
    put_results(study)
    sweep = observe(study)
    assert {item.state for item in sweep.items} == {"done"}
    assert "every result is there" in wording.overview(sweep)


def test_a_survey_by_name_finds_what_reading_finds(tiny_study):
    study = tiny_study("base=omniquant", "cells=[{bits:[int2,int8,matquant],seed:[0,1]}]")
    store = ResultStore(study.setup.paths.results)
    put_results(study)
    paths = sorted(store.folder.glob("*/*/*.json"))
    for path in paths[::3]:
        path.unlink()
    paths[1].write_text("")
    named = survey(study.cells, study.setup.readout, store)
    read = {cell.id: missing(cell, study.setup.readout, store) for cell in study.cells}
    assert {i: {plan: set(tasks) for plan, tasks in gaps.items()} for i, gaps in named.items()} == {
        i: {plan: set(tasks) for plan, tasks in gaps.items()} for i, gaps in read.items()
    }


def test_plans_are_divided_over_the_jobs_of_a_cell(tiny_study):
    study = tiny_study("base=omniquant", "bits=matquant", "cluster.evaluate_jobs=2", "readout.plans=[int8,int4,int2]")
    evaluations = [item for item in observe(study).items if item.stage.kind == "evaluate"]
    assert [item.stage.name for item in evaluations] == ["evaluate-1of2", "evaluate-2of2"]
    assert [[str(plan) for plan in item.gaps] for item in evaluations] == [["int8", "int2"], ["int4"]]
    assert Stage("evaluate", PlanShare(0, 1)).name == EVALUATE.name == "evaluate"


def test_plans_divided_otherwise_are_not_evaluated_twice(tiny_study):
    study = tiny_study("base=omniquant", "bits=matquant")
    put(study, ALIVE, stage="evaluate-1of3")
    (item,) = [item for item in observe(study).items if item.stage.kind == "evaluate"]
    assert item.state == "running"
    assert "evaluate-1of3" in item.note


# --- a stage that searches -------------------------------------------------------------------------------------------


@pytest.fixture
def searched(tiny_study):
    """A cell whose read-out names searches."""
    return tiny_study(*TINY_GPTQ, "readout.plans=[int4, evolution@3, dynamic_program@3]")


def train_by_name(study) -> RunDir:
    """Leaves the description of a checkpoint, which is all that planning looks at."""
    run = RunDir(study.setup.paths.runs, study.cells[0].id)
    write_json(run.description, {"checksum": "abc"})
    return run


def find_by_name(study, *labels: str) -> None:
    """Leaves the plans that searches of such a checkpoint would have found."""
    run, readout = train_by_name(study), study.setup.readout
    for wanted in readout.plans_of(study.cells[0]):
        if str(wanted).partition("-")[0] in labels:
            asked = Search.of(wanted, readout.search).facts("abc", readout.dtype)
            write_json(run.plan(str(wanted)), {"layers": {}, "search": asked})


def stages_of(study, queue: list[QueuedJob] | None = None) -> dict[str, str]:
    sweep = observe(study, None if queue is None else Known(queue))
    return {item.stage.name: item.state for item in sweep.items}


def test_a_search_comes_between_training_and_evaluation_where_a_plan_names_one(searched, study):
    assert list(stages_of(searched)) == ["train", "search", "evaluate"]
    assert list(stages_of(study)) == ["train", "evaluate"]
    assert [line.split()[0] for line in wording.overview(observe(searched)).splitlines()[3:]] == [
        "train",
        "search",
        "evaluate",
    ]
    assert "search" not in wording.overview(observe(study))


def test_a_search_is_done_when_every_plan_that_is_missed_is_found_for_this_checkpoint(searched):
    train_by_name(searched)
    assert len(cell_item(searched, "search").plans) == 2
    find_by_name(searched, "evolution@3")
    (left,) = cell_item(searched, "search").plans
    assert str(left).startswith("dynamic_program@3")
    find_by_name(searched, "dynamic_program@3")
    assert cell_item(searched, "search").state == "done"
    write_json(RunDir(searched.setup.paths.runs, searched.cells[0].id).description, {"checksum": "another"})
    assert len(cell_item(searched, "search").plans) == 2
    put_results(searched)
    assert set(stages_of(searched).values()) == {"done"}


def test_an_evaluation_waits_for_the_search_and_the_search_for_the_training(searched):
    def waits_for(stage: str) -> str | None:
        sweep = observe(searched)
        (item,) = [item for item in sweep.items if item.stage.name == stage]
        before = sweep.leads_to(item)
        return None if before is None else before.stage.name

    assert (waits_for("search"), waits_for("evaluate")) == ("train", "search")
    train_by_name(searched)
    assert (waits_for("search"), waits_for("evaluate")) == (None, "search")
    put(searched, replace(GONE, state="failed", reason="error", message="m"), stage="search")
    assert waits_for("evaluate") == "search"
    # A budget that is out of reach keeps no other plan from being evaluated.
    put(searched, replace(GONE, state="failed", reason="bad input", message="m"), stage="search")
    assert waits_for("evaluate") is None


def test_the_jobs_behind_a_training_that_has_failed_are_missing(searched):
    put(searched, replace(GONE, state="failed", reason="error", **MINE), JOB)
    queue = []
    for number, stage in ((8, "search"), (9, "evaluate")):
        put(searched, None, replace(JOB, name=f"launch-1-{number}", job_id=str(number)), stage=stage)
        queue.append(QueuedJob(str(number), f"launch-1-{number}", "PENDING", "Dependency"))
    assert stages_of(searched, queue) == {"train": "failed", "search": "missing", "evaluate": "missing"}


OPTIONS = Options((), False, None, (), False, False, False)


@pytest.mark.parametrize(
    ("state", "reason", "asked", "expected"),
    [
        ("missing", None, None, True),
        ("done", None, "all", False),
        ("running", None, "all", False),
        ("queued", None, "all", False),
        ("failed", "killed", None, True),
        ("failed", "cancelled", None, True),
        ("failed", "interrupted", None, True),
        ("failed", "error", None, False),
        ("failed", "time limit", None, False),
        ("failed", "error", "some", True),
        ("failed", "disk full", None, True),
        ("failed", "out of memory", "some", False),
        ("failed", "non-finite", "some", False),
        ("failed", "out of memory", "all", True),
        ("failed", "non-finite", "all", True),
    ],
)
def test_what_is_submitted(study, state, reason, asked, expected):
    item = Item(study.cells[0], study.cells[0].id, TRAIN, state, reason)
    assert replace(OPTIONS, retry_failed=asked).wants(item) is expected


def test_every_reason_has_a_remedy_and_every_failure_is_shown_with_its_log(study):
    put(study, replace(GONE, state="failed", reason="disk full", message="no room"), replace(JOB, log="/x/7_0_log.out"))
    text = wording.failures([cell_item(study)])
    assert "disk full" in text
    assert "no room" in text
    assert "log: /x/7_0_log.out" in text
    assert "remedy: make room" in text


def test_progress_is_a_share_a_time_and_a_guess(study, monkeypatch):
    now = time.time()
    monkeypatch.setattr(wording.time, "time", lambda: now)
    item = Item(study.cells[0], "cell", TRAIN, "running", status=replace(ALIVE, done=25, total=100))
    item = replace(item, status=replace(item.status, started=now - 60, first=0))
    assert wording.progress(item) == ("25 %", "60 s", "3 min")
    resumed = replace(item, status=replace(item.status, first=20))
    assert wording.progress(resumed) == ("25 %", "60 s", "15 min")
    searching = replace(resumed.status, since=now - 20, message="searching for evolution@3")
    assert wording.progress(replace(item, status=searching)) == ("25 %", "60 s", "5 min")
    [_, row] = wording.states(plan.Sweep(study, (replace(item, status=searching),)))
    assert row[-1] == "searching for evolution@3"
    assert [wording.duration(seconds) for seconds in (5, 600, 36_000)] == ["5 s", "10 min", "10.0 h"]


def test_long_tables_are_cut_unless_they_are_asked_for_whole():
    rows = [["cell", ""], *([str(number), ""] for number in range(100))]
    assert wording.table(rows, whole=False).splitlines()[-1] == "... and 60 more (--all shows them)"
    assert len(wording.table(rows, whole=True).splitlines()) == 101


def test_a_path_that_is_relative_is_made_absolute(tiny_study):
    study = tiny_study("paths.runs=somewhere")
    assert plan.absolute(study).setup.paths.runs == Path.cwd() / "somewhere"
