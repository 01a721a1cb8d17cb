"""The parts of the GPU check that hold results against the CPU's and against one process's, small and on a CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import agreement, exact, sharded
from benchmarks.gpu.guard import guarded
from benchmarks.gpu.lines import Line, Scale

CPU = torch.device("cpu")


def failures(lines) -> list[str]:
    return [f"{line.what}: {line.failed}" for line in lines if line.failed]


def test_exact_arithmetic_agrees_with_itself():
    lines = [line for what in (exact.read_outs, exact.grids, exact.planes) for line in what(CPU)]
    assert len(lines) == 8
    assert not failures(lines)


@pytest.mark.parametrize("name", agreement.FITS)
def test_a_last_place_of_the_weights_moves_a_fit_by_less_than_its_bounds(name):
    lines = list(agreement.compared(name, agreement.FITS[name], CPU, 32))
    assert not failures(lines)
    assert [line.what.split(": ")[1] for line in lines] == [
        "numbers that differ",
        "codes unlike the CPU's",
        "weights unlike the CPU's",
    ]


def test_scores_and_products_agree_with_themselves():
    lines = [*agreement.scores(CPU, 32), *agreement.products(CPU)]
    assert len(lines) == 4
    assert not failures(lines)


def test_the_place_of_activations_changes_no_number():
    (line,) = agreement.from_host_memory("gptq", Scale(CPU, small=True))
    assert not line.failed
    assert line.note == "ordinary memory"


def test_a_fit_is_repeated_with_and_without_deterministic_algorithms():
    fit = agreement.Fit(agreement._gptq(compute_dtype="bfloat16"), agreement.Bounds(1, 1))
    twice, cost = agreement.repeated("gptq", fit, Scale(CPU, small=True))
    assert not twice.failed
    assert cost.note == "0 numbers differ where torch only warns"


def test_one_rank_of_fsdp_trains_what_one_process_trains():
    lines = list(sharded.sharded(Scale(CPU, small=True)))
    assert not failures(lines)
    assert "seconds a step" in [line.what for line in lines]


def test_an_error_in_one_measurement_is_a_line_in_words():
    def measure():
        yield Line("before")
        raise RuntimeError("no\nkernel")

    before, failed = guarded("it", measure)
    assert before.what == "before"
    assert failed.failed.startswith("RuntimeError at gpu/test_gpu_agreement.py:")
    assert failed.failed.endswith(": no kernel")
