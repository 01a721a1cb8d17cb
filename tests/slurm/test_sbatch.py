"""Submitting on clusters of many kinds: options, environments, limits and lost answers, by stand-ins for SLURM."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

import pytest

from matquant.config.setup import SlurmCluster
from matquant.errors import UserError
from matquant.runs.folder import RunDir
from slurm.plan import observe
from slurm.records import read_submission
from slurm.sbatch import feeding, submission
from slurm.sbatch.environment import carried, environment_of_sbatch, unused
from slurm.sbatch.feeding import Feeder
from slurm.sbatch.limits import largest_array, max_array_size
from slurm.sbatch.parameters import replacements
from slurm.sbatch.refusals import in_words, keys_of, kind_of
from slurm.states.known import Known, QueuedJob
from slurm.submit import Launch, Outcome
from tests.tiny import TINY_GPTQ

ONE = ("cluster=slurm", *TINY_GPTQ)
SIX = (*ONE, "cells=[{seed:[0,1,2,3,4,5]}]")


def a_cluster(**settings: object) -> SlurmCluster:
    return SlurmCluster.model_validate({"kind": "slurm", **settings})


@pytest.fixture
def submit(tiny_study, tmp_path, stand_ins) -> Callable[..., Outcome]:
    """Submits all of a study."""

    def begin(*overrides: str) -> Outcome:
        sweep = observe(tiny_study(*overrides))
        return Launch(sweep, tmp_path).submit(sweep.items)

    return begin


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected", "absent"),
    [
        ("cluster.sbatch={exclude: node7, mail-type: [END,FAIL]}", {"exclude": "node7", "mail-type": "END,FAIL"}, ()),
        ("cluster.sbatch.exclude=node[1-3]", {"exclude": "'node[1-3]'"}, ()),
        ("cluster.sbatch={gpus_per_node: 'a100:2'}", {"gpus-per-node": "a100:2"}, ()),
        ("cluster.sbatch={gpus-per-node: 'gpu:2'}", {"gpus-per-node": "gpu:2"}, ()),
        ("cluster.sbatch={gres: 'gpu:h100:2'}", {"gres": "gpu:h100:2"}, ("gpus-per-node",)),
        ("cluster.sbatch={gres: 'license:1'}", {"gres": "license:1", "gpus-per-node": "1"}, ()),
        ("cluster.gpus_per_node=gpu:h100:4", {"gpus-per-node": "h100:1"}, ()),
        ("cluster.gpus_per_node=h100:4", {"gpus-per-node": "h100:1"}, ()),
        ("cluster.gpus_per_node=0", {}, ("gpus-per-node",)),
        ("cluster.sbatch={mem-per-cpu: 4G}", {"mem-per-cpu": "4G"}, ("mem",)),
        ("cluster.sbatch={mem: null}", {}, ("mem",)),
        ("cluster.sbatch={cpus_per_gpu: 6}", {"cpus-per-gpu": "6"}, ("cpus-per-task",)),
        ("cluster.sbatch={requeue: false}", {"no-requeue": ""}, ("requeue",)),
        ("cluster.sbatch={no-requeue: true}", {"no-requeue": ""}, ("requeue",)),
        ("cluster.sbatch={exclusive: true, overcommit: false}", {"exclusive": "", "requeue": ""}, ("overcommit",)),
        ("cluster.sbatch={time: '12:00:00'}", {"time": "12:00:00"}, ()),
        ("cluster.sbatch={partition: long}", {"partition": "long"}, ()),
    ],
)
def test_an_option_of_the_user_reaches_sbatch_once_and_in_place_of_ours(override, expected, absent, submit, stand_ins):
    submit(*ONE, override)
    options = stand_ins.options()
    assert {name: options.get(name) for name in expected} == expected
    assert not set(absent) & set(options)
    names = re.findall(r"^#SBATCH --([\w-]+)", stand_ins.scripts[0], re.MULTILINE)
    assert len(names) == len(set(names))
    assert "wckey" not in names


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sbatch": {"array": "1-3"}}, r"array is not for you to set: .*cluster\.max_array_size"),
        ({"sbatch": {"job_name": "x"}}, r"job_name is not for you to set: jobs are found by their name"),
        ({"sbatch": {"nodes": 2}}, r"set cluster\.nodes"),
        ({"sbatch": {"x": "node7"}}, r"x is a short name; write the long one"),
        ({"sbatch": {"gpus-per-node": 1, "gpus_per_node": 2}}, r"gpus-per-node is named twice"),
        ({"gpus_per_node": "h100"}, r"gpus_per_node=h100 is no number of GPUs; write 4, or with their type h100:4"),
        ({"gpus_per_node": "a:b:4"}, r"is no number of GPUs"),
    ],
)
def test_an_option_that_the_jobs_depend_on_is_refused_with_its_key(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        a_cluster(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"time": 30}, "cluster.sbatch.time=30 takes the place of cluster.time_min=1440"),
        ({"mem-per-cpu": "4G"}, "cluster.sbatch.mem-per-cpu=4G takes the place of cluster.mem_gb_per_task=64.0"),
        ({"gres": "gpu:2"}, "every job asks for gres=gpu:2 (cluster.sbatch); cluster.gpus_per_node=1 says how many"),
        ({"mem": None}, "cluster.sbatch.mem is empty: jobs are submitted without it"),
        ({"exclude": "node7"}, ""),
        ({"time": None}, ""),
        ({"partition": "gpu"}, ""),
    ],
)
def test_a_key_that_does_not_count_any_more_is_named(settings, sentence):
    said = "\n".join(replacements(a_cluster(sbatch=settings)))
    assert said.startswith(sentence)
    assert bool(said) == bool(sentence)


# --- environments ----------------------------------------------------------------------------------------------------


def test_a_launch_in_a_job_leaves_no_trace_of_that_job_in_its_own(submit, stand_ins, monkeypatch):
    outer = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_CPU": "4000",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_RESTART_COUNT": "30",
        "SBATCH_TIMELIMIT": "5",
        "SRUN_CPUS_PER_TASK": "3",
        "SUBMITIT_EXECUTOR": "local",
        "WORLD_SIZE": "8",
        "CUDA_VISIBLE_DEVICES": "3",
    }
    for name, value in {**outer, "SLURM_CONF": "/etc/other.conf", "SBATCH_EXPORT": "NONE"}.items():
        monkeypatch.setenv(name, value)
    submit(*ONE)
    seen = stand_ins.variables()
    assert not set(outer) & set(seen)
    assert (seen["SLURM_CONF"], seen["SBATCH_EXPORT"]) == ("/etc/other.conf", "NONE")
    assert "--export=ALL" in stand_ins.scripts[0]


def test_the_defaults_of_a_person_stay_where_no_key_says_otherwise():
    variables = {"SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "debug", "CUDA_VISIBLE_DEVICES": "1"}
    assert environment_of_sbatch(variables, a_cluster()) == variables
    chosen = a_cluster(partition="gpu", sbatch={"account": "other"})
    assert environment_of_sbatch(variables, chosen) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert unused(variables, chosen) == ["SBATCH_ACCOUNT=mine", "SBATCH_PARTITION=debug"]


def test_jobs_know_where_models_lie_and_no_token_is_written_to_a_script():
    lines = carried(
        {"HF_HOME": "/big disk", "HF_TOKEN": "hf_x", "WANDB_API_KEY": "k", "WANDB_MODE": "offline", "A": "b"}
    )
    assert lines == ["export HF_HOME='/big disk'", "export WANDB_MODE=offline"]


@pytest.mark.parametrize("array", [None, "2"])
def test_a_job_takes_its_own_pickle_to_where_it_is_looked_for(array, submit, stand_ins, tmp_path):
    submit(*(ONE if array is None else SIX))
    script = stand_ins.scripts[0]
    lines = [line for line in script.splitlines() if "_submitted.pkl" in line or line.startswith("number=")]
    place = {} if array is None else {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": array}
    for _ in range(2):  # once more, as after a requeue
        subprocess.run(["bash", "-c", "\n".join(lines)], env={"SLURM_JOB_ID": "41", **place}, check=True)
    assert len(list(tmp_path.rglob("41_submitted.pkl" if array is None else "40_2_submitted.pkl"))) == 1


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"MaxArraySize": "1001"}, 1001),
        ({"MaxArraySize": "0"}, 1),
        ({"MaxArraySize": "1001", "SchedulerParameters": "bf_interval=1,max_array_tasks=50"}, 50),
        ({}, None),
    ],
)
def test_the_largest_array_is_read_from_the_configuration(said, expected):
    assert largest_array(said) == expected


def test_a_smaller_array_can_be_asked_for_and_one_that_is_not_known_is_the_users(stand_ins):
    assert max_array_size(a_cluster()) == 1000
    assert max_array_size(a_cluster(max_array_size=5000)) == 5000
    stand_ins.is_configured(MaxArraySize=40)
    assert max_array_size(a_cluster(max_array_size=5000)) == 40
    assert max_array_size(a_cluster(max_array_size=7)) == 7


def arrays(stand_ins) -> list[tuple[str | None, str | None]]:
    """The array and the dependency of every script that sbatch was given."""
    found = [stand_ins.options(number) for number in range(len(stand_ins.scripts))]
    return [(options.get("array"), options.get("dependency")) for options in found]


def test_arrays_are_no_larger_than_the_cluster_takes(submit, stand_ins):
    stand_ins.is_configured(MaxArraySize=4)
    assert submit(*SIX).number == 12
    assert arrays(stand_ins) == [
        ("0-3%4", None),
        ("0-1%2", None),
        ("0-3%4", "aftercorr:100"),
        ("0-1%2", "aftercorr:101"),
    ]


def test_an_array_that_is_refused_for_its_size_is_submitted_in_halves(submit, stand_ins):
    stand_ins.answers(
        'if [ $size -gt 3 ]; then echo "sbatch: error: Batch job submission failed: Invalid job array '
        'specification" >&2; exit 1; fi'
    )
    assert submit(*SIX).number == 12
    assert arrays(stand_ins) == [
        ("0-5%6", None),
        *[("0-2%3", None)] * 2,
        ("0-2%3", "aftercorr:101"),
        ("0-2%3", "aftercorr:102"),
    ]


def test_a_full_queue_takes_what_it_has_places_for_and_the_rest_is_left_without_a_record(submit, stand_ins, tiny_study):
    stand_ins.has_places(4)
    outcome = submit(*SIX)
    assert (outcome.number, len(outcome.left)) == (4, 8)
    assert outcome.words.startswith("QOSMaxSubmitJobPerUserLimit")
    assert "cluster.qos" in feeding.in_words(outcome)
    study = tiny_study(*SIX)
    records = list(study.setup.paths.runs.glob("*/*.job.json"))
    assert len(records) == 4
    assert all(json.loads(path.read_text())["job_id"] for path in records)
    # An evaluation whose training has no place is not submitted ahead of it.
    assert {path.name for path in records} == {"train.job.json"}


def test_the_rest_is_fed_as_places_become_free(tiny_study, tmp_path, stand_ins, monkeypatch):
    study = tiny_study(*SIX)

    def look(num_running: int):
        """The study with so many of the jobs that were submitted still in the queue; the others count as done."""
        paths = sorted(study.setup.paths.runs.glob("*/*.job.json"))
        jobs = [job for path in paths if (job := read_submission(path)) is not None]
        return observe(
            study, Known(QueuedJob(job.job_id or "", job.name, "RUNNING") for job in jobs[len(jobs) - num_running :])
        )

    stand_ins.has_places(4)
    launch = Launch(look(0), tmp_path)
    outcome = launch.submit(look(0).items)
    feeder = Feeder(launch, outcome, at_work=4)
    assert not feeder.is_due(look(4))
    assert feeder.is_due(look(2))
    stand_ins.free(taken=2)
    sweep = look(2)
    waiting = feeder.waiting([item for item in sweep.items if item.stage.kind == "train"])
    assert len(waiting) == 2
    assert feeder.feed(sweep, waiting) == Outcome(2)
    assert len(stand_ins.scripts[-1].split("#SBATCH --array=0-1%2")) == 2  # both at once
    assert len(feeder.waiting(look(4).items)) == 6
    # There may be more places: it asks for two at the next look, and then waits.
    assert feeder.is_due(look(4))
    assert feeder.feed(look(4), feeder.waiting(look(4).items)[:2]).left
    assert not feeder.is_due(look(4))
    monkeypatch.setattr(feeding.time, "monotonic", lambda: float("inf"))
    assert feeder.is_due(look(4))


def test_a_limit_that_no_job_of_ones_own_fills_is_an_error(tiny_study, tmp_path, stand_ins):
    stand_ins.has_places(0)
    sweep = observe(tiny_study(*ONE))
    launch = Launch(sweep, tmp_path)
    outcome = launch.submit(sweep.items)
    assert (outcome.number, len(outcome.left)) == (0, 2)
    with pytest.raises(UserError, match=r"none of yours is in its queue; raise the limit, or choose .* cluster\.qos"):
        Feeder(launch, outcome, at_work=0).feed(sweep, sweep.items)


def test_an_sbatch_that_waits_for_a_full_queue_is_not_waited_for(submit, stand_ins):
    stand_ins.answers(
        'echo "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying." >&2; exec sleep 600'
    )
    outcome = submit(*ONE)
    assert (outcome.number, len(outcome.left)) == (0, 2)
    assert len(stand_ins.scripts) == 1


# --- answers that were lost ------------------------------------------------------------------------------------------

LOST = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'


def test_jobs_whose_number_was_lost_are_found_by_their_name_and_not_submitted_again(submit, stand_ins, tiny_study):
    stand_ins.answers(LOST)
    line = "41_[0-5%6]|PENDING|None|root|N/A|ours|normal|x"
    stand_ins.command("squeue", f'#!/bin/sh\necho "$@" >> {stand_ins.folder}/asked\necho "{line}"\n')
    assert submit(*SIX) == Outcome(12)
    assert len(stand_ins.scripts) == 2
    study = tiny_study(*SIX)
    path = RunDir(study.setup.paths.runs, study.cells[2].id).job("train")
    assert json.loads(path.read_text())["job_id"] == "41_2"
    asked = (stand_ins.folder / "asked").read_text().splitlines()
    assert asked[0].endswith(f"--name {stand_ins.options(0)['job-name']}")


def test_jobs_that_may_come_yet_keep_their_record_and_what_they_need(submit, stand_ins, tiny_study, monkeypatch):
    monkeypatch.setattr(submission, "BETWEEN_S", 0.0)
    stand_ins.answers(LOST)
    outcome = submit(*SIX)
    assert (outcome.number, len(outcome.left)) == (0, 12)
    assert "Socket timed out" in outcome.words
    assert len(stand_ins.scripts) == 1
    study = tiny_study(*SIX)
    assert len(list(study.setup.paths.runs.glob(".jobs/*/*.pkl"))) == 6
    name = stand_ins.options()["job-name"]
    jobs = Known(QueuedJob(f"41_{index}", name, "PENDING") for index in range(6))
    trainings = [item for item in observe(study, jobs).items if item.stage.kind == "train"]
    assert {item.state for item in trainings} == {"queued"}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind", "key"),
    [
        ("sbatch: error: invalid partition specified: x", "refused", "cluster.partition"),
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit, user's size and/or time limits)", "full", "cluster.account"),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", "full", "cluster.qos"),
        ("sbatch: error: AssocGrpSubmitJobsLimit", "full", "cluster.account"),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit, user's size and/or time limits)", "refused", "cluster.time_min"),
        ("sbatch: error: QOSMaxGRESPerUser\nsbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit)", "refused", "cluster.gpus_per_node"),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", "full", "cluster.*"),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", "array", "cluster.*"),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", "silent", "cluster.*"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
         "silent", "cluster.*"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         "refused", "cluster.account"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "refused", "cluster.qos"),
        ("sbatch: error: Batch job submission failed: Invalid feature specification", "refused", "cluster.constraint"),
        ("sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: "
         "Requested node configuration is not available", "refused", "cluster.mem_gb_per_task"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available",
         "refused", "cluster.gpus_per_node, cluster.cpus_per_task"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some "
         "limit)", "refused", "cluster.time_min"),
        ("sbatch: unrecognized option '--exlude=node7'", "refused", "cluster.sbatch"),
    ],
)  # fmt: skip
def test_a_refusal_is_of_a_kind_and_names_the_key_that_it_is_about(said, kind, key):
    assert kind_of(said) == kind
    words = in_words(said)
    assert "sbatch:" not in words
    assert keys_of(words).startswith(key)


def test_what_is_refused_leaves_no_record_and_names_its_key(submit, stand_ins, tmp_path):
    stand_ins.answers('echo "sbatch: error: Batch job submission failed: Invalid qos specification" >&2; exit 1')
    with pytest.raises(UserError, match=r"SLURM refused 6 jobs: .*Invalid qos specification; mend cluster\.qos and"):
        submit(*SIX)
    assert not list(tmp_path.rglob("*.job.json"))
    assert not list(tmp_path.rglob("*.pkl"))
