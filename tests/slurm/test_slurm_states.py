"""States out of SLURM's words about a job, by stand-ins: alive is alive, and every end has its own remedy."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from matquant.errors import UserError
from matquant.runs.files import write_json
from matquant.runs.folder import RunDir
from matquant.runs.processes import process_started, user_name
from matquant.runs.status import SILENT_S, Status
from slurm import queue, status, wording
from slurm.cancelling import cancel, cancel_what_waits_in_vain
from slurm.launch import Options
from slurm.plan import Item, look
from slurm.records import Submission, read_submission, write_submission
from slurm.states.endings import START
from slurm.states.endings import STATUS as ENDED_WITH
from slurm.states.known import elements
from slurm.states.reasons import RULES
from tests.slurm_standins import StandIns, job

OPTIONS = Options((), False, None, (), False, False, False)
NOW = time.time()
ELSEWHERE = Status("running", NOW - 600, NOW, f"not-{socket.gethostname()}", 1, 0.0, user=user_name())
HERE = replace(ELSEWHERE, host=socket.gethostname(), pid=os.getpid(), process_started=process_started(os.getpid()) or 0)
DEAD = replace(HERE, process_started=1.0)
SILENT = replace(ELSEWHERE, at=NOW - 2 * SILENT_S)
JOB = Submission("launch", "slurm", "launch-0", job_id="7", submitted=NOW - 900, user=user_name(), slurm_cluster="home")
ANNS = replace(JOB, user="ann")
MINE = {"launch": "launch"}
ALLOCATED = {"slurm_job": "7", "slurm_name": "mine", "slurm_cluster": "home"}


@pytest.fixture(autouse=True)
def _a_clock_that_shows_the_time_of_the_reports(monkeypatch):
    started, clock = time.monotonic(), time.monotonic
    monkeypatch.setattr(time, "time", lambda: NOW + clock() - started)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[StandIns]:
    made = StandIns(tmp_path / "slurm")
    monkeypatch.setattr(queue, "subprocess", made.in_process())
    queue.configuration.cache_clear()
    yield made
    queue.configuration.cache_clear()


@pytest.fixture
def study(tiny_study):
    return tiny_study("base=omniquant", "base.batch_size=2", "cluster=slurm")


@pytest.fixture
def training(study) -> Callable[..., Item]:
    """Leaves a report and a record of the training of a cell, looks, and returns the training."""

    def see(report: Status | None = None, record: Submission | None = None, cluster: str = "slurm") -> Item:
        run = RunDir(study.setup.paths.runs, study.cells[0].id)
        for value, path in ((report, run.status("train")), (record, run.job("train"))):
            path.unlink(missing_ok=True)
            if value is not None:
                write_json(path, asdict(value))
        return look(study).items[0]

    return see


def log_of(folder: Path, text: str) -> Submission:
    """The record of a job whose log says something."""
    (folder / "7_0_log.out").write_text(text)
    return replace(JOB, log=str(folder / "7_0_log.out"))


# --- alive is alive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "record"),
    [
        (HERE, None),
        (ELSEWHERE, None),
        (replace(HERE, **ALLOCATED), None),
        (replace(ELSEWHERE, **ALLOCATED), None),
        (replace(ELSEWHERE, **MINE), JOB),
        (replace(HERE, **MINE, **ALLOCATED), JOB),
        (replace(ELSEWHERE, user="ann", **MINE), ANNS),
    ],
)
def test_a_process_that_reports_is_running_though_slurm_shows_no_job(slurm, training, report, record):
    assert training(report, record).state == "running"


@pytest.mark.parametrize("command", ["squeue", "sacct"])
@pytest.mark.parametrize(("word", "state"), [("RUNNING", "running"), ("PENDING", "queued")])
@pytest.mark.parametrize("report", [None, replace(SILENT, **MINE), replace(DEAD, **MINE)])
def test_a_job_that_slurm_calls_running_or_pending_is_never_killed(slurm, training, command, word, state, report):
    slurm.tell(job("7", "launch-0", word, on=command))
    assert training(report, JOB).state == state


def test_a_short_form_in_the_accounts_stands_for_each_of_its_jobs(slurm, training):
    slurm.tell(job("7_[1-3,5%2]", "launch-0", "PENDING", on="sacct"))
    assert training(None, replace(JOB, job_id="7_2")).state == "queued"
    assert training(None, replace(JOB, job_id="7_4")).state == "missing"
    assert elements("7_[0-4:2,9]") == ["7_0", "7_2", "7_4", "7_9"]


def test_a_queue_that_does_not_answer_is_replaced_by_the_accounts_if_they_know_every_job(slurm, training):
    running = job("7", "launch-0", "RUNNING", on="sacct")
    slurm.tell(running, broken={"squeue": "Unable to contact slurm controller"})
    assert training(None, JOB).state == "running"
    slurm.tell(broken={"squeue": "Unable to contact slurm controller"})
    with pytest.raises(UserError, match=r"1 jobs of this study were submitted to SLURM.*Unable to contact"):
        training(None, JOB)


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_the_variables_of_the_caller_do_not_change_what_is_seen(slurm, tiny_study, monkeypatch, cluster):
    """The commands as programs, found on PATH."""
    monkeypatch.undo()
    monkeypatch.setenv("PATH", slurm.programs())
    for name in ("SQUEUE_STATES", "SACCT_STATE"):
        monkeypatch.setenv(name, "R")
    monkeypatch.setenv("SLURM_CLUSTERS", "another")
    study = tiny_study("base=omniquant", "base.batch_size=2", f"cluster={cluster}")
    write_submission(RunDir(study.setup.paths.runs, study.cells[0].id).job("train"), JOB)
    slurm.tell(job("7", "launch-0", "PENDING"))
    assert look(study).items[0].state == "queued"
    slurm.tell()
    assert look(study).items[0].state == "missing"
    assert len(slurm.calls("squeue")) == 2


def test_jobs_are_asked_for_by_their_numbers_whoevers_they_are(slurm, training):
    slurm.tell(job("7_3", "launch-0", "RUNNING", user="ann"))
    found = training(None, replace(ANNS, job_id="7_3"))
    assert (found.state, found.owner, found.note) == ("running", "ann", "job 7_3 of ann")
    assert all("--user" not in words for words in slurm.calls("squeue"))
    assert "7" in slurm.calls("squeue")[0]


@pytest.mark.parametrize(
    "other",
    [
        {"name": "theirs"},
        {"user": "ann"},
        {"number": "8"},
    ],
)
def test_a_job_with_another_name_user_or_number_is_not_taken_for_ours(slurm, training, other):
    stranger = {"number": "7", "name": "launch-0", **other}
    slurm.tell(job(stranger.pop("number"), stranger.pop("name"), "RUNNING", **stranger))
    found = training(None, JOB)
    assert (found.state, found.job) == ("missing", None)


def test_a_user_whom_this_machine_knows_by_number_only_may_be_ours(slurm, training):
    slurm.tell(job("7", "launch-0", "RUNNING", user="1234"))
    assert training(None, JOB).state == "running"


def test_a_job_of_another_cluster_is_asked_for_there(slurm, training):
    slurm.clusters = ("home", "away")
    slurm.tell(job("7", "launch-0", "RUNNING"))
    assert training(None, replace(JOB, slurm_cluster="away")).state == "missing"
    slurm.tell(job("7", "launch-0", "PENDING", cluster="away"), job("7", "launch-0", "RUNNING"))
    assert training(None, replace(JOB, slurm_cluster="away")).state == "queued"
    slurm.clusters = ("home",)
    slurm.tell()
    with pytest.raises(UserError, match=r"No cluster 'away' known.*run this on a login node of that cluster"):
        training(None, replace(JOB, slurm_cluster="away"))


def test_a_job_whose_number_was_never_noted_is_found_by_its_name(slurm, training):
    slurm.tell(job("7_2", "launch-0", "PENDING"), job("8_2", "theirs", "RUNNING"))
    assert training(None, replace(JOB, job_id=None, index=2)).state == "queued"
    assert training(None, replace(JOB, job_id=None, index=1)).state == "missing"


def test_a_process_in_ones_own_allocation_lives_as_long_as_its_job_or_its_reports(slurm, training):
    slurm.tell(job("7", "mine", "RUNNING"))
    found = training(replace(SILENT, **ALLOCATED))
    assert found.state == "running"
    assert "while its job 7 runs" in found.note
    slurm.tell(job("7", "mine", "PENDING", reason="BeginTime"))  # requeued by SLURM
    assert training(replace(SILENT, **ALLOCATED)).state == "queued"
    slurm.tell(job("7", "mine", "NODE_FAIL"))
    found = training(replace(ELSEWHERE, **ALLOCATED))
    assert (found.state, found.reason) == ("failed", "node lost")
    slurm.tell(job("7", "theirs", "RUNNING", user="ann"))
    assert training(replace(SILENT, **ALLOCATED)).reason == "killed"


def test_a_job_that_slurm_has_forgotten_is_dead_when_it_has_been_silent_for_some_minutes(slurm, training):
    assert training(replace(ELSEWHERE, at=NOW - 200, **MINE), JOB).state == "running"
    assert training(replace(ELSEWHERE, at=NOW - 400, **MINE), JOB).reason == "killed"


def test_a_worker_of_another_machine_that_was_just_started_is_starting(slurm, training):
    record = Submission("launch", "local", "launch", host="elsewhere", pid=1, submitted=NOW, user="ann")
    found = training(None, record)
    assert (found.state, found.owner) == ("running", "ann")
    assert found.note == "process 1 of ann on elsewhere is starting"


def test_a_job_that_slurm_hides_from_others_is_not_submitted_twice(slurm, training, monkeypatch):
    slurm.configuration["PrivateData"] = "jobs,usage"
    slurm.tell()
    monkeypatch.setattr(queue.os, "getuid", lambda: 12345)
    found = training(None, ANNS)
    assert (found.state, found.owner) == ("queued", "ann")
    assert training(None, JOB).state == "missing"


def test_a_running_row_carries_no_message_of_an_earlier_attempt(slurm, study, training):
    slurm.tell(job("7", "launch-0", "RUNNING", start=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW - 60))))
    old = {
        "failed": {"message": "out of luck"},
        "stopped": {"message": "stopped after block 3"},
        "running": {"message": "x"},
    }
    for state, told in old.items():
        report = replace(DEAD, state=state, at=NOW - 300, **told, **MINE)
        assert training(report, JOB).status is None
        [_, row, *_] = wording.states(look(study))
        assert row[-1] == "job 7"
    now = replace(ELSEWHERE, message="searching", **MINE)
    assert training(now, JOB).status == now
    assert training(replace(now, launch="an earlier one"), JOB).status is None


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_a_colleague_sees_whose_the_work_is_and_neither_submits_nor_cancels_it(slurm, study, training, capsys):
    slurm.tell(job("7", "launch-0", "RUNNING", user="ann"))
    training(None, ANNS)
    sweep = look(study)
    assert "ann is at work on 1 stages: they are not submitted again" in status.text(sweep, whole=False)
    assert not OPTIONS.wants(sweep.items[0])
    assert not replace(OPTIONS, retry_failed="all").wants(sweep.items[0])
    assert cancel(look(study), OPTIONS.chosen, dry_run=False) == 0
    assert "cancelled 0 jobs" in (said := capsys.readouterr().out)
    assert "only ann can cancel them" in said
    assert slurm.calls("scancel") == []


def test_a_stranger_with_our_number_is_not_cancelled_and_our_own_job_is(slurm, study, training, capsys):
    slurm.tell(job("7", "theirs", "RUNNING"))
    training(None, JOB)
    cancel(look(study), OPTIONS.chosen, dry_run=False)
    assert slurm.calls("scancel") == []
    slurm.tell(job("7", "launch-0", "RUNNING"))
    cancel(look(study), OPTIONS.chosen, dry_run=False)
    assert slurm.calls("scancel") == [["7"]]


def test_a_colleagues_job_that_cannot_start_is_left_to_the_colleague(slurm, training):
    slurm.tell(job("7", "launch-0", "PENDING", reason="PartitionTimeLimit", user="ann"))
    found = training(None, ANNS)
    assert (found.reason, found.what_to_do) == ("cannot start", "job 7 is ann's, who alone can release or cancel it")
    assert not replace(OPTIONS, retry_failed="all").wants(found)


def test_a_record_keeps_its_user_and_the_ways_in_which_earlier_jobs_ended(tmp_path):
    path = tmp_path / "job.json"

    def kept(record: Submission) -> Submission:
        write_submission(path, record)
        read = read_submission(path)
        assert read is not None
        return read

    theirs = replace(ANNS, ended=("killed: 3 files",))
    assert kept(theirs) == theirs
    assert not kept(theirs).is_mine
    assert kept(Submission("launch", "slurm", "launch-0")).user == user_name()
    write_json(path, {"launch": "old", "cluster": "slurm", "name": "old-0"})  # of an earlier version
    old = read_submission(path)
    assert old is not None
    assert old.is_mine


# --- jobs that cannot start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("PartitionTimeLimit", "cluster.time_min"),
        ("QOSMaxWallDurationPerJobLimit", "cluster.time_min"),
        ("AssocMaxWallDurationPerJobLimit", "cluster.time_min"),
        ("QOSMaxCpuMinutesPerJobLimit", "cluster.time_min"),
        ("PartitionNodeLimit", "cluster.nodes"),
        ("QOSMaxNodePerJobLimit", "cluster.nodes"),
        ("PartitionConfig", "gpus_per_node"),
        ("BadConstraints", "cluster.constraint"),
        ("InvalidAccount", "cluster.account"),
        ("AccountNotAllowed", "cluster.account"),
        ("InvalidQOS", "cluster.qos"),
        ("QOSNotAllowed", "cluster.qos"),
        ("ReservationDeleted", "reservation"),
        ("MaxMemPerLimit", "mem_gb_per_task"),
        ("QOSMaxMemoryPerJob", "mem_gb_per_task"),
        ("QOSMaxGRESPerJob", "gpus_per_node"),
        ("QOSMaxGRESPerNode", "gpus_per_node"),
        ("QOSMinGRES", "gpus_per_node"),
        ("QOSMaxCpuPerJobLimit", "cpus_per_task"),
        ("AssocMaxBBPerJob", "ask for less"),
        ("AssocGrpGRES", "cluster.account or cluster.qos"),
        ("QOSGrpCpuLimit", "cluster.account or cluster.qos"),
        ("AssocGrpCPUMinutesLimit", "cluster.account or cluster.qos"),
        ("QOSMaxGRESPerUser", "cluster.account or cluster.qos"),
    ],
)
def test_a_job_that_can_never_start_has_a_remedy_and_nothing_is_waited_for(slurm, study, training, reason, remedy):
    slurm.tell(job("7", "launch-0", "PENDING", reason=reason))
    found = training(None, JOB)
    assert (found.state, found.reason) == ("failed", "cannot start")
    assert reason in found.note
    assert remedy in found.what_to_do
    assert "--retry-failed" in found.what_to_do
    assert not look(study).of("running", "queued")
    assert not OPTIONS.wants(found)
    assert replace(OPTIONS, retry_failed="some").wants(found)
    cancel_what_waits_in_vain([found])
    assert slurm.calls("scancel") == [["7"]]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("PENDING", "JobHeldUser"),
        ("PENDING", "JobHeldAdmin"),
        ("PENDING", "JobHoldMaxRequeue"),
        ("PENDING", "launch failed requeued held"),
        ("PENDING", "(job requeued in held state)"),
        ("REQUEUE_HOLD", "None"),
        ("SPECIAL_EXIT", "None"),
    ],
)
def test_a_job_that_is_held_is_called_so(slurm, training, state, reason):
    slurm.tell(job("7", "launch-0", state, reason=reason))
    found = training(None, JOB)
    assert (found.state, found.reason) == ("failed", "held")
    assert "scontrol release 7" in found.what_to_do


@pytest.mark.parametrize(
    "reason",
    [
        *("Priority", "Resources", "Dependency", "JobArrayTaskLimit", "BeginTime", "Licenses", "None"),
        *("ReqNodeNotAvail, UnavailableNodes:node7", "PartitionDown", "Reservation", "QOSUsageThresholdish"),
    ],
)
def test_a_job_that_may_still_start_is_queued(slurm, training, reason):
    running = job("8", "other", "RUNNING", user="ann")
    slurm.tell(job("7", "launch-0", "PENDING", reason=reason), running)
    found = training(None, JOB)
    assert found.state == "queued"
    assert reason in found.note


@pytest.mark.parametrize(
    ("reason", "other", "state"),
    [
        ("AssocGrpGRES", {"account": "ours"}, "queued"),
        ("AssocGrpGRES", {"account": "theirs"}, "failed"),
        ("AssocGrpGRES", {"user": user_name(), "account": "theirs"}, "failed"),
        ("AssocMaxJobsLimit", {"user": user_name(), "account": "theirs"}, "queued"),
        ("QOSGrpNodeLimit", {"qos": "normal", "account": "theirs"}, "queued"),
        ("QOSGrpNodeLimit", {"qos": "long", "account": "theirs"}, "failed"),
    ],
)
@pytest.mark.parametrize("ended_s", [None, 10, 1000])
def test_a_limit_that_other_jobs_have_reached_is_waited_for(slurm, training, reason, other, state, ended_s):
    word = {"state": "RUNNING"}
    if ended_s is not None:  # SLURM starts the next jobs a while after the end of others
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - ended_s))
        word = {"state": "COMPLETED", "end": end}
    slurm.tell(job("7", "launch-0", "PENDING", reason=reason), job("8", "other", **{"user": "ann", **word, **other}))
    assert training(None, JOB).state == ("failed" if ended_s == 1000 else state)


def test_what_waits_behind_a_job_that_cannot_start_is_missing_and_its_job_stays(slurm, study):
    run = RunDir(study.setup.paths.runs, study.cells[0].id)
    write_submission(run.job("train"), JOB)
    write_submission(run.job("evaluate"), replace(JOB, job_id="8", name="launch-1"))
    waiting = job("8", "launch-1", "PENDING", reason="Dependency")
    slurm.tell(job("7", "launch-0", "PENDING", reason="JobHeldUser"), waiting)
    sweep = look(study)
    assert [item.state for item in sweep.items] == ["failed", "missing"]
    assert sweep.items[1].note == "its job waits for one that cannot start"
    assert not sweep.waits_in_vain(sweep.items[1])
    slurm.tell(job("7", "launch-0", "FAILED"), waiting)
    sweep = look(study)
    assert sweep.waits_in_vain(sweep.items[1])


def test_a_job_that_waits_for_a_failed_one_is_replaced_though_the_work_of_that_one_is_done_since(slurm, study):
    run = RunDir(study.setup.paths.runs, study.cells[0].id)
    write_json(run.description, {})
    write_submission(run.job("evaluate"), JOB)
    slurm.tell(job("7", "launch-0", "PENDING", reason="DependencyNeverSatisfied"))
    sweep = look(study)
    assert [item.state for item in sweep.items] == ["done", "missing"]
    assert sweep.waits_in_vain(sweep.items[1])
    assert OPTIONS.wants(sweep.items[1])


# --- how jobs ended --------------------------------------------------------------------------------------------------

PYTHON = "submitit INFO (2026-11-22 15:37:31,280) - Starting with JobEnvironment(job_id=7)\n"
SRUN = "srun: error: node1: task 0: {}\n"


@pytest.mark.parametrize(
    ("said", "word", "reason", "note"),
    [
        ("", None, "killed", "without a status"),
        (PYTHON, None, "killed", "without a status"),
        ("", "FAILED", "setup failed", "its log is empty"),
        (f"{START}\n{ENDED_WITH} 3\n", None, "setup failed", "with status 3 before Python started"),
        (
            f"{START}\nmodule: not found\n{ENDED_WITH} 1\n",
            None,
            "setup failed",
            "before Python started: module: not found",
        ),
        ("module: not found", None, "setup failed", "module: not found"),
        (f"{START}\n{ENDED_WITH} 0\n", "COMPLETED", "setup failed", "with status 0"),
        (PYTHON + SRUN.format("Aborted"), None, "crashed", "Aborted"),
        (PYTHON + SRUN.format("Segmentation fault"), "FAILED", "crashed", "Segmentation fault"),
        (PYTHON + SRUN.format("Segmentation fault (core dumped)"), "FAILED", "crashed", "Segmentation fault"),
        (PYTHON + SRUN.format("Bus error"), None, "crashed", "Bus error"),
        (PYTHON + "Fatal Python error: Floating-point exception\n", None, "crashed", "Floating point exception"),
        (f"{START}\n{PYTHON}{ENDED_WITH} 139\n", None, "crashed", "Segmentation fault"),
        (PYTHON + SRUN.format("Killed"), "FAILED", "killed", "SLURM says FAILED"),
        (PYTHON + SRUN.format("Out Of Memory"), "FAILED", "out of memory", ""),
        (PYTHON, "OUT_OF_MEMORY", "out of memory", ""),
        (PYTHON + "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", None, "out of memory", ""),
        (PYTHON + "train bloom-560m-omniquant-int2: 50 %", None, "error", "read the log"),
        (PYTHON, "TIMEOUT", "time limit", ""),
        (PYTHON + SRUN.format("User defined signal 2"), "FAILED", "time limit", ""),
        (
            "slurmstepd: error: *** STEP 7.0 ON n CANCELLED AT 2026-11-26T16:48:11 DUE TO TIME LIMIT ***",
            None,
            "time limit",
            "",
        ),
        (
            "slurmstepd: error: *** JOB 7 ON n CANCELLED AT 2026-11-26T16:48:11 DUE TO PREEMPTION ***",
            None,
            "preempted",
            "",
        ),
        (
            "slurmstepd: error: *** JOB 7 ON n CANCELLED AT 2026-11-26T16:48:11 DUE TO NODE FAILURE, SEE SLURMCTLD ***",
            None,
            "node lost",
            "",
        ),
        ("slurmstepd: error: *** JOB 7 ON n CANCELLED AT 2026-11-26T16:48:11 ***", None, "cancelled", ""),
        (PYTHON, "NODE_FAIL", "node lost", ""),
        ("", "BOOT_FAIL", "node lost", ""),
        (PYTHON, "PREEMPTED", "preempted", ""),
        (PYTHON, "CANCELLED", "cancelled", ""),
        (
            PYTHON + "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'y'\n",
            "FAILED",
            "error",
            "ModuleNotFoundError: No module named 'y'",
        ),
        # Of an earlier start of the same job.
        (f"{START}\n{PYTHON}{SRUN.format('Aborted')}{START}\n{ENDED_WITH} 3\n", None, "setup failed", "status 3"),
    ],
)
def test_a_job_that_left_no_report_has_the_reason_that_slurm_and_its_log_give(
    slurm, training, tmp_path, said, word, reason, note
):
    if word is not None:
        slurm.tell(job("7", "launch-0", word))
    found = training(None, log_of(tmp_path, said))
    assert (found.state, found.reason) == ("failed", reason), found.note
    assert note in found.note
    assert found.what_to_do
    assert "log: " in wording.failures([found])


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_a_job_that_failed_without_a_log_did_start(slurm, training, command):
    slurm.tell(job("7", "launch-0", "FAILED", on=command))
    found = training(None, replace(JOB, log="/nowhere/7_0_log.out"))
    assert (found.reason, found.state) == ("setup failed", "failed")
    assert "can its node see /nowhere?" in found.note
    slurm.tell(job("7", "launch-0", "CANCELLED", on=command))
    assert training(None, replace(JOB, log="/nowhere/7_0_log.out")).state == "missing"


@pytest.mark.parametrize(
    ("word", "reason"), [("OUT_OF_MEMORY", "out of memory"), ("FAILED", "killed"), ("TIMEOUT", "time limit")]
)
def test_a_process_that_reported_and_then_fell_silent_has_slurms_word(slurm, training, tmp_path, word, reason):
    slurm.tell(job("7", "launch-0", word, on="sacct"))
    found = training(replace(DEAD, **MINE), log_of(tmp_path, PYTHON))
    assert found.reason == reason
    assert f"SLURM says {word}" in found.note


@pytest.mark.parametrize("state", ["stopped", "running", "failed"])
def test_a_job_that_was_started_again_and_failed_in_its_setup_is_not_called_what_it_was_before(
    slurm, training, tmp_path, state
):
    again = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW - 60))
    slurm.tell(job("7", "launch-0", "FAILED", start=again))
    record = log_of(tmp_path, f"{START}\n{PYTHON}{ENDED_WITH} 1\n{START}\n{ENDED_WITH} 3\n")
    assert training(replace(DEAD, state=state, at=NOW - 300, **MINE), record).reason == "setup failed"
    report = replace(DEAD, state="stopped", at=NOW - 30, **MINE)
    assert training(report, record).reason == "interrupted"


# --- the next launch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "again"),
    [(SRUN.format("Aborted"), "crashed"), (SRUN.format("Killed"), "killed"), ("DUE TO NODE FAILURE", "node lost")],
)
def test_what_ended_in_the_same_way_twice_is_not_submitted_a_third_time_unasked(slurm, training, tmp_path, said, again):
    report, record = replace(DEAD, done=3, total=8, **MINE), log_of(tmp_path, PYTHON + said)
    first = training(report, record)
    assert first.reason == again
    assert OPTIONS.wants(first)
    second = training(report, replace(record, ended=first.ended))
    assert not OPTIONS.wants(second)
    assert second.what_to_do == "it has ended in this way twice: read the log, then --retry-failed"
    assert replace(OPTIONS, retry_failed="some").wants(second)
    third = training(report, replace(record, ended=second.ended))
    assert not OPTIONS.wants(third)


def test_a_job_that_is_killed_goes_on_as_long_as_it_saves_something_in_between(slurm, study, training, tmp_path):
    record, report = log_of(tmp_path, PYTHON), replace(DEAD, **MINE)
    piece = RunDir(study.setup.paths.runs, study.cells[0].id).state / "block-0"
    first = training(report, record)
    write_json(piece, {})
    second = training(report, replace(record, ended=first.ended))
    assert OPTIONS.wants(second)
    third = training(report, replace(record, ended=second.ended))
    assert not OPTIONS.wants(third)


@pytest.mark.parametrize("reason", RULES)
def test_every_reason_has_a_remedy_and_a_rule_that_agree(reason):
    remedy, again = RULES[reason]
    assert ("--retry-failed" in remedy) == (again in ("asked", "insisted") and reason != "non-finite")
    assert ("launch again" in remedy) == (again in ("always", "once more"))


def test_watching_ends_where_slurm_cannot_be_asked_at_all_and_when_nothing_can_change(slurm, study, training, capsys):
    slurm.tell(job("7", "launch-0", "PENDING", reason="JobHeldUser"))
    training(None, JOB)
    status.watch(study, whole=False)
    assert "its user holds it" in capsys.readouterr().out
    slurm.tell(broken={"squeue": "no configuration"})
    with pytest.raises(UserError, match="no configuration"):
        status.watch(study, whole=False)


def test_without_slurms_commands_only_jobs_that_may_still_run_are_refused(study, training, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    queue.configuration.cache_clear()
    with pytest.raises(
        UserError, match=r"1 jobs of this study .* by ann, whose commands cannot be found here .* delete"
    ):
        training(replace(DEAD, **MINE), ANNS)
    with pytest.raises(UserError, match="whose commands cannot be found here"):
        training(None, JOB)
    assert training(replace(ELSEWHERE, user="ann", **MINE), ANNS).note == f"process 1 of ann on {ELSEWHERE.host}"
    assert training(replace(DEAD, state="failed", reason="error", **MINE), JOB).state == "failed"
    queue.configuration.cache_clear()
