"""The stored list of overflow weights: its length is that of bits that are really written and read."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.figures.pareto import sizes
from analysis.frame.load import load_frame
from analysis.frame.summary import summary
from analysis.report.building import numbers_of, text_of
from evaluation.results.readouts import readout_rows
from evaluation.results.store import ResultStore
from evaluation.results.stored_bits import charges_float32, recounted_by_label
from matquant.checkout import PROJECT
from matquant.codes.extra_precision import code_statistics, num_overflow, overhead_bits
from matquant.codes.nested import nest
from matquant.codes.overflow_list import list_bits
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec
from matquant.notation import Plan, Slice
from reference.overflow_reference import read, written
from tests.made_results import MATQUANT, documents_of, measure, quantized, study, unquantized

EP = {"int8": 0.1, "int4+ep": 0.1, "int2+ep": 1.0}


@given(st.lists(st.booleans(), min_size=1, max_size=150))
def test_the_count_of_bits_is_that_of_the_shortest_list_that_can_be_read_again(overflows):
    bits = written(overflows)
    assert read(bits, len(overflows)) == overflows
    assert len(bits) == list_bits(len(overflows), sum(overflows))


def test_a_layer_with_six_percent_of_overflow_has_half_a_bit_a_weight():
    assert list_bits(10**6, 63_000) / 10**6 == pytest.approx(6 * 0.063 + 7 / 64, abs=1e-4)  # 0.49


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_list_is_never_longer_than_a_bitmap(share):
    assert list_bits(4096, int(4096 * share)) == 4096 + 5


def test_a_layer_without_overflow_has_one_count():
    assert list_bits(4096, 0) == 5 + 13


@pytest.fixture
def layers():
    generator = torch.Generator().manual_seed(0)
    weights = {f"model.layers.{block}.mlp.up_proj": torch.randn(16, 64, generator=generator) for block in range(4)}
    return {name: nest(weight, minmax_grid(weight, 8, GridSpec(group_size=16)), 8) for name, weight in weights.items()}


@pytest.mark.parametrize("label", ["int2+ep", "int5+ep", "pyramid@3+ep"])
def test_older_results_are_counted_anew_from_the_record_of_their_codes(layers, label, tmp_path):
    plan, num_parameters = Plan.parse(label), 10_000
    costs = overhead_bits(layers, plan, num_parameters=num_parameters)
    num_quantized = sum(layer.codes.numel() for layer in layers.values())
    older = {**costs, "overflow_bits": 1.0}
    older["model_bits"] += (1.0 - costs["overflow_bits"]) * num_quantized / num_parameters
    made = study(tmp_path, [quantized(EP)], plans=(label,))
    store = measure(made)
    (cell,) = made.cells
    for result in list(store.results(cell.id)):
        store.put(dataclasses.replace(result, overhead=older), documents_of(result))
    checkpoint = {"checkpoint": f"checksum of {cell.id}"}
    store.put_codes(cell.id, {**checkpoint, **code_statistics(layers)})
    (row,) = summary(load_frame(made.cells, made.setup, store)).to_dict("records")
    assert {name: row[name] for name in costs} == pytest.approx(costs)
    assert row["notes"] == ()
    wanted = {result.task: result.protocol for result in store.results(cell.id)}
    for of_task in readout_rows(store, cell.id, wanted):
        assert of_task["model_bits"] == pytest.approx(costs["model_bits"])


def test_a_record_without_counts_has_them_in_its_effective_bits(layers, tmp_path):
    made = study(tmp_path, [quantized(EP)], plans=("int2",))
    store = measure(made)
    recorded = code_statistics(layers)
    for of_layer in recorded["layers"].values():
        del of_layer["overflow"]
    store.put_codes(made.cells[0].id, recorded)
    (row,) = summary(load_frame(made.cells, made.setup, store)).to_dict("records")
    assert row["overflow_bits"] == overhead_bits(layers, Plan.parse("int2+ep"), num_parameters=10_000)["overflow_bits"]


@pytest.mark.parametrize("codes", [None, {"checkpoint": "another", "layers": {}}, {"layers": {"a": {}}}])
def test_a_count_that_cannot_be_made_anew_is_named_at_its_row(codes, tmp_path):
    made = study(tmp_path, [unquantized(), quantized(EP)], plans=("int8", "int2"))
    store = measure(made)
    if codes is not None:
        store.put_codes(made.cells[1].id, codes)
    rows = summary(load_frame(made.cells, made.setup, store)).set_index("plan")
    assert rows.loc["int2+ep", "overflow_bits"] == 0.8
    assert [len(notes) for notes in rows.loc[["full", "int8", "int2+ep"], "notes"]] == [0, 0, 1]
    assert "[1] its + overflow and Stored are as they were stored" in " ".join(text_of(numbers_of(made)).split())


def test_the_extra_bit_and_the_list_of_it_are_not_both_counted(tmp_path):
    made = study(tmp_path, [quantized(EP)], plans=("int8", "int2"))
    rows = summary(load_frame(made.cells, made.setup, measure(made)))
    stored = dict(zip(rows["plan"], sizes(rows, "with_grid"), strict=True))
    assert stored == pytest.approx({"int8": 8 + 1.25, "int2+ep": 2 + 1.25 + 0.8})


def test_counts_of_a_large_layer_are_exact(layers):
    nested = next(iter(layers.values()))
    wide = nested._replace(codes=nested.codes.repeat(1, 17))
    part = Slice(2, extra_precision=True)
    assert num_overflow(wide, part) == 17 * num_overflow(nested, part) > 0
    assert json.loads(json.dumps(code_statistics({"a": wide})))["layers"]["a"]["overflow"]["int2"] == num_overflow(
        wide, part
    )


def test_the_committed_results_of_the_study_can_all_be_counted_anew():
    store = ResultStore(PROJECT / "studies" / "smollm2_135m" / "results")
    for name in store.readouts():
        cell_id, _, plan = name.partition(":")
        if not plan.endswith("+ep"):
            continue
        for result in store.results(cell_id):
            if result.plan == plan:
                found = recounted_by_label(result, store)
                assert found is not None
                assert found.overhead["overflow_bits"] < result.overhead["overflow_bits"]
                assert found.overhead["model_bits"] < result.overhead["model_bits"]


@pytest.mark.parametrize(("dtype", "grid_bits", "is_older"), [("float16", 2.0, True), ("float16", 1.0, False)])
def test_an_older_result_that_charges_16_bit_scales_as_32_is_told(dtype, grid_bits, is_older, tmp_path):
    cell = quantized(MATQUANT)
    assert cell.grid is not None
    cell = cell.model_copy(update={"grid": cell.grid.model_copy(update={"group_size": 32, "scale_dtype": dtype})})
    made = study(tmp_path, [cell], plans=("int8",))
    store = measure(made)
    (result, *_) = store.results(cell.id)
    older = dataclasses.replace(result, overhead={"grid_bits": grid_bits, "overflow_bits": 0.0, "model_bits": 12.0})
    assert charges_float32(older, cell) is is_older
    store.put(older, documents_of(older))
    loaded = load_frame(made.cells, made.setup, store)
    assert bool(loaded.by_older_count) is is_older
