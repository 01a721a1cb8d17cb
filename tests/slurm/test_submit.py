"""The order of jobs on SLURM: arrays behind arrays, element by element, tested without a cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slurm.plan import observe
from slurm.sbatch.parameters import sbatch_parameters
from slurm.submit import Batch, Launch
from tests.tiny import TINY_GPTQ

SEARCHED = ("cluster=slurm", "readout.plans=[int4, evolution@3]")


pytestmark = pytest.mark.usefixtures("stand_ins")


@pytest.fixture
def submitted(tiny_study, tmp_path, monkeypatch) -> Callable[..., list[tuple[str, int, str | None]]]:
    """The batches of a launch: the stage, the number of jobs, and what they wait for; numbered from 0."""

    def submit(*overrides: str) -> list[tuple[str, int, str | None]]:
        batches: list[Batch] = []

        def record(self: Launch, batch: Batch) -> str:
            batches.append(batch)
            return str(len(batches) - 1)

        monkeypatch.setattr(Launch, "_submit", record)
        sweep = observe(tiny_study(*overrides))
        Launch(sweep, tmp_path).submit(sweep.items)
        return [(batch.items[0].stage.name, len(batch.items), batch.dependency) for batch in batches]

    return submit


def test_a_search_array_follows_the_trainings_and_an_evaluation_array_the_searches(submitted):
    assert submitted(*SEARCHED, *TINY_GPTQ, "cells=[{seed:[0,1,2]}]") == [
        ("train", 3, None),
        ("search", 3, "aftercorr:0"),
        ("evaluate", 3, "aftercorr:1"),
    ]


def test_one_cell_is_three_jobs_behind_one_another(submitted):
    assert submitted(*SEARCHED, *TINY_GPTQ) == [
        ("train", 1, None),
        ("search", 1, "afterok:0"),
        ("evaluate", 1, "afterok:1"),
    ]


def test_cells_without_a_search_are_an_array_of_their_own(submitted):
    assert submitted(*SEARCHED, *TINY_GPTQ, "cells=[{bits:[matquant,int2],seed:[0,1]}]") == [
        ("train", 2, None),
        ("train", 2, None),
        ("search", 2, "aftercorr:0"),
        ("evaluate", 2, "aftercorr:2"),
        ("evaluate", 2, "aftercorr:1"),
    ]


def test_where_no_plan_is_searched_for_there_are_two_arrays_as_ever(submitted):
    assert submitted("cluster=slurm", *TINY_GPTQ, "cells=[{bits:[matquant,int2],seed:[0,1]}]") == [
        ("train", 4, None),
        ("evaluate", 4, "aftercorr:0"),
    ]


def test_a_search_has_one_gpu_and_the_time_of_an_evaluation(tiny_study, tmp_path):
    sweep = observe(tiny_study(*SEARCHED, *TINY_GPTQ, "cluster.evaluate_time_min=30", "cluster.gpus_per_node=4"))
    launch = Launch(sweep, tmp_path)
    (item,) = [item for item in sweep.items if item.stage.kind == "search"]
    asked = sbatch_parameters(launch._job(item), launch.cluster, "name", [], "afterok:7")
    assert (asked["time"], asked["nodes"]) == (30, 1)
    options = asked["additional_parameters"]
    assert (options["gpus-per-node"], options["dependency"]) == ("1", "afterok:7")
