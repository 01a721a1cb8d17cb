"""Mix'n'Match: the budget is met as closely as whole blocks allow, and layouts put widths where their names say."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matquant.codes.extra_precision import (
    code_histogram,
    code_statistics,
    effective_bits,
    overflow_shares,
    overhead_bits,
)
from matquant.codes.layouts import arrange, counts, slices_of
from matquant.codes.nested import nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec
from matquant.errors import UserError
from matquant.notation import LAYOUTS, Plan, Slice

BUDGETS = (2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


@given(budget=st.floats(2, 8), num_blocks=st.integers(1, 40))
def test_no_other_counts_come_closer_to_the_budget(budget, num_blocks):
    counted = counts(budget, num_blocks)
    assert sum(counted.values()) == num_blocks

    def distance(wide: int, middle: int) -> float:
        return abs(2 * (num_blocks - wide - middle) + 4 * middle + 8 * wide - budget * num_blocks)

    best = min(distance(w, m) for w, m in product(range(num_blocks + 1), repeat=2) if w + m <= num_blocks)
    assert distance(counted[8], counted[4]) <= best + 1e-6


@pytest.mark.parametrize("num_blocks", [2, 7, 26, 30, 32, 42])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_average_is_within_one_step_of_the_budget(budget, num_blocks):
    counted = counts(budget, num_blocks)
    average = sum(width * number for width, number in counted.items()) / num_blocks
    assert abs(average - budget) <= 1 / num_blocks


def test_all_three_widths_take_part_where_the_budget_lets_them():
    assert min(counts(4.0, 12).values()) > 0
    assert counts(2.0, 12) == {2: 12, 4: 0, 8: 0}
    assert counts(8.0, 12) == {2: 0, 4: 0, 8: 12}


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_layout_uses_the_same_widths_in_its_own_order(budget, num_blocks):
    counted = counts(budget, num_blocks)
    arranged = {layout: arrange(layout, counted) for layout in LAYOUTS}
    assert len({tuple(sorted(widths)) for widths in arranged.values()}) == 1
    assert arranged["increasing"] == sorted(arranged["increasing"])
    assert arranged["decreasing"] == arranged["increasing"][::-1]
    for layout, sign in (("pyramid", 1), ("reverse_pyramid", -1)):
        widths = [sign * width for width in arranged[layout]]
        top = widths.index(max(widths))
        assert widths[: top + 1] == sorted(widths[: top + 1])
        assert widths[top:] == sorted(widths[top:], reverse=True)
        # As many narrow blocks on the left as on the right, to one.
        assert (
            abs(widths.count(min(widths)) - 2 * len([w for w in widths[: len(widths) // 2] if w == min(widths)])) <= 1
        )


def names(num_blocks: int) -> list[str]:
    return [f"model.layers.{index}.mlp.{name}" for index in range(num_blocks) for name in ("up_proj", "down_proj")]


def test_a_plan_gives_all_layers_of_a_block_the_same_slice():
    slices = slices_of(Plan.parse("increasing@4"), names(12))
    assert all(slices[f"model.layers.{i}.mlp.up_proj"] == slices[f"model.layers.{i}.mlp.down_proj"] for i in range(12))
    assert slices["model.layers.0.mlp.up_proj"] == Slice(2)
    assert slices["model.layers.11.mlp.up_proj"] == Slice(8)


def test_blocks_are_in_the_models_order_not_in_the_alphabets():
    slices = slices_of(Plan.parse("increasing@5"), sorted(names(12)))
    widths = [slices[f"model.layers.{index}.mlp.up_proj"].bits for index in range(12)]
    assert widths == sorted(widths)


def test_a_uniform_plan_reads_every_layer_alike():
    assert set(slices_of(Plan.parse("int2+ep"), names(3)).values()) == {Slice(2, extra_precision=True)}


@pytest.mark.parametrize("label", ["pyramid@4", "increasing@2.5", "pyramid@3+ep"])
def test_effective_bits_are_those_of_the_slices_that_are_read(label):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    layers = {name: nest(weight, minmax_grid(weight, 8, GridSpec()), 8) for name in names(8)}
    plan = Plan.parse(label)
    nominal = [part.bits for part in slices_of(plan, layers).values()]
    measured = effective_bits(layers, plan)
    if plan.extra_precision:
        assert sum(nominal) / len(nominal) < measured < sum(nominal) / len(nominal) + 0.1
    else:
        assert measured == pytest.approx(sum(nominal) / len(nominal))


@pytest.mark.parametrize("text", ["pyramid@1.5", "pyramid@9", "cone@3", "pyramid@", "pyramid"])
def test_a_plan_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match=r"choose a budget from 2 to 8|is not a read-out plan"):
        Plan.parse(text)


@pytest.mark.parametrize("text", ["full", "int4", "int2+ep", "pyramid@3", "reverse_pyramid@2.5+ep"])
def test_a_plan_reads_what_it_prints(text):
    assert Plan.parse(str(Plan.parse(text))) == Plan.parse(text)
    assert str(Plan.parse(text)) == text


def test_plans_of_trained_overflow_buckets_keep_them():
    assert str(Plan.parse("int2").with_extra_precision(8)) == "int2+ep"
    assert str(Plan.parse("int8").with_extra_precision(8)) == "int8"
    assert str(Plan.parse("pyramid@3").with_extra_precision(8)) == "pyramid@3+ep"


def test_overheads_are_counted_beside_the_papers_bits():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    layers = {name: nest(weight, minmax_grid(weight, 8, GridSpec(group_size=16)), 8) for name in names(2)}
    num_quantized = 4 * 256
    costs = overhead_bits(layers, Plan.parse("int2"), num_parameters=2 * num_quantized)
    assert costs["grid_bits"] == 2 * 32 / 16  # a float32 scale and zero for 16 weights
    assert costs["overflow_bits"] == 0
    half = overhead_bits(layers, Plan.parse("int2"), num_parameters=2 * num_quantized, scale_dtype="bfloat16")
    assert half["grid_bits"] == costs["grid_bits"] / 2, "a scale is charged as it is stored, whatever it is read in"
    assert costs["model_bits"] == (2 + costs["grid_bits"] + 16) / 2
    extra = overhead_bits(layers, Plan.parse("int2+ep"), num_parameters=2 * num_quantized)
    assert 0 < extra["overflow_bits"] <= 1
    assert sum(code_histogram(layers)) == num_quantized
    shares = overflow_shares(layers)
    assert list(shares) == ["overflow/int6", "overflow/int4", "overflow/int3", "overflow/int2"]
    assert list(shares.values()) == sorted(shares.values())
    assert effective_bits(layers, Plan.parse("int2+ep")) == pytest.approx(2 + shares["overflow/int2"])


def test_statistics_of_the_codes_give_the_effective_bits_of_every_layer():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    layers = {
        name: nest(weight * 2**place, minmax_grid(weight, 8, GridSpec()), 8) for place, name in enumerate(names(2))
    }
    statistics = code_statistics(layers)
    assert statistics["histogram"] == code_histogram(layers)
    assert list(statistics["layers"]) == list(layers)
    for name, nested in layers.items():
        of_layer = statistics["layers"][name]
        assert of_layer["num_weights"] == nested.codes.numel()
        assert list(of_layer["effective_bits"]) == ["int6+ep", "int4+ep", "int3+ep", "int2+ep"]
        for plan, bits in of_layer["effective_bits"].items():
            assert bits == pytest.approx(effective_bits({name: nested}, Plan.parse(plan)))


# --- plan files ------------------------------------------------------------------------------------------------------


def plan_file(folder, widths: dict[str, str], name: str = "dp_3.0"):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"layers": widths, "about": "anything else"}))
    return path


def test_a_plan_file_names_the_slice_of_every_layer(tmp_path):
    widths = dict(zip(names(2), ["int8", "int4", "int2", "int2+ep"], strict=False))
    plan = Plan.parse(str(plan_file(tmp_path, widths)))
    assert {name: str(part) for name, part in slices_of(plan, names(2)).items()} == widths
    assert re.fullmatch(r"dp_3\.0-[0-9a-f]{8}", str(plan))
    assert plan.bits == 4
    assert plan.extra_precision


def test_the_label_of_a_plan_file_is_what_it_says_and_not_where_it_lies(tmp_path):
    (tmp_path / "other").mkdir()
    here, there = (plan_file(folder, {"a.0.b": "int4"}) for folder in (tmp_path, tmp_path / "other"))
    changed = plan_file(tmp_path, {"a.0.b": "int2"}, name="changed")
    assert str(Plan.parse(str(here))) == str(Plan.parse(str(there)))
    assert str(Plan.parse(str(changed)))[-8:] != str(Plan.parse(str(here)))[-8:]


def test_a_plan_file_keeps_its_overflow_buckets_where_they_were_trained(tmp_path):
    plan = Plan.parse(str(plan_file(tmp_path, {"a.0.b": "int8", "a.1.b": "int2"}))).with_extra_precision(8)
    assert dict(plan.layers or ()) == {"a.0.b": Slice(8), "a.1.b": Slice(2, extra_precision=True)}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layers": {"a": "wide"}}', '{"layers": 3}'])
def test_what_is_not_a_plan_file_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=r"bad.json is not a plan .* with every quantized layer"):
        Plan.parse(str(tmp_path / "bad.json"))


def test_a_plan_for_other_layers_is_refused_by_name(tmp_path):
    plan = Plan.parse(str(plan_file(tmp_path, {"a.0.b": "int4"})))
    with pytest.raises(UserError, match=r"has 1 layers, the checkpoint 2, and a\.1\.b is in only one of them"):
        slices_of(plan, ["a.0.b", "a.1.b"])
