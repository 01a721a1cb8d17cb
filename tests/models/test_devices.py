"""The device of a cell, and the warning of what a dtype costs there."""

from __future__ import annotations

import os

import pytest
import torch

from evaluation import searching
from matquant.errors import UserError
from matquant.models import devices
from matquant.models.devices import (
    DtypeCost,
    deterministic,
    pick_device,
    product_cost,
    product_speed,
    repeatable,
    say_what_it_costs,
)
from tests.tiny import tiny_overrides

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def emulated(monkeypatch):
    """A CPU on which a bfloat16 product takes almost six times as long as a float32 one."""
    monkeypatch.setattr(devices, "product_cost", lambda dtype: DtypeCost(0.191, 0.033))


def test_who_asks_for_a_dtype_that_the_cpu_emulates_is_told_what_it_costs(emulated, caplog):
    say_what_it_costs("bfloat16", CPU, "readout.dtype", "another protocol")
    (line,) = caplog.messages
    assert line == (
        "readout.dtype=bfloat16: this CPU emulates bfloat16; a matrix product takes 5.8 times as long as in float32 "
        "(191 against 33 ms). readout.dtype=float32 is faster here (another protocol)"
    )


def test_where_it_costs_nothing_nothing_is_said(emulated, monkeypatch, caplog):
    say_what_it_costs("float32", CPU, "readout.dtype", "another protocol")
    say_what_it_costs("bfloat16", GPU, "readout.dtype", "another protocol")
    monkeypatch.setattr(devices, "product_cost", lambda dtype: DtypeCost(0.010, 0.033))
    say_what_it_costs("bfloat16", CPU, "readout.dtype", "another protocol")
    assert not caplog.messages


def test_a_product_is_really_timed_and_once():
    cost = product_cost("bfloat16")
    assert min(cost) > 0
    assert product_cost("bfloat16") == cost  # two clocks never agree to the last digit
    tokens, inputs, outputs = devices.SHAPE
    assert product_speed("float32") == pytest.approx(2 * tokens * inputs * outputs / cost.float32)


@pytest.mark.parametrize("base", ["omniquant", "gptq", "qat"])
def test_training_and_reading_in_bfloat16_say_it(base, tiny_study, emulated, caplog):
    import run

    budget = ["base.num_steps=1"] if base != "gptq" else []
    study = tiny_study(
        *(f"base={base}", *budget, "base.batch_size=2", "base.compute_dtype=bfloat16", "bits=int2"),
        *("readout.tasks=[]", "readout.dtype=bfloat16"),
    )
    run.run_cell(study.cells[0], study.setup)
    told = [line.partition(":")[0] for line in caplog.messages if "emulates" in line]
    assert told == ["base.compute_dtype=bfloat16", "readout.dtype=bfloat16"]


def test_auto_is_the_gpu_where_there_is_one(tiny_study, monkeypatch):
    setup = tiny_study("device=auto").setup
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device(setup).type == ("cuda" if there else "cpu")


def test_a_gpu_is_told_to_compute_the_same_bits_and_a_cpu_is_left_alone(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic(GPU):
        assert torch.are_deterministic_algorithms_enabled()
        repeatable(GPU)  # as a model does that is loaded meanwhile
        assert torch.get_deterministic_debug_mode() == 2  # an error, not a warning
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]


def test_a_search_in_bfloat16_says_it_before_it_looks_for_a_checkpoint(tmp_path, emulated, caplog):
    overrides = [*tiny_overrides(tmp_path), "base=gptq", "base.batch_size=2", "readout.dtype=bfloat16"]
    with pytest.raises(UserError, match="is not trained yet"):
        searching.main(["evolution@3", *overrides])
    assert any(line.startswith("readout.dtype=bfloat16: this CPU emulates") for line in caplog.messages)
