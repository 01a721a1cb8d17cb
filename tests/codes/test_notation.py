"""The paper's notation parses, prints, and refuses what makes no sense."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matquant.notation import Objective, Plan, Slice, Term

slices = st.builds(Slice, st.integers(1, 8), st.booleans()) | st.builds(
    Slice, st.integers(1, 8), rule=st.sampled_from(["half_up", "floor", "centre"])
)


@given(slices)
def test_a_slice_reads_what_it_prints(part):
    assert Slice.parse(str(part)) == part == Slice.parse(part.short)


@given(st.integers(1, 7), st.integers(1, 7), st.booleans(), st.floats(0.01, 10))
def test_a_term_reads_what_it_prints(student, wider, extra, weight):
    teacher = Slice(min(8, student + wider))
    term = Term(Slice(student, extra), weight, teacher if teacher.bits > student else None)
    assert Term.parse(str(term), weight) == term


@pytest.mark.parametrize("text", ["int0", "int9", "four", "int2ep", "", "-2", "int2.5", "int2_ceil"])
def test_what_is_not_a_slice_is_refused_by_name(text):
    with pytest.raises(ValueError, match="is not a"):
        Slice.parse(text)


@pytest.mark.parametrize("rule", ["floor", "centre"])
def test_a_rule_of_slicing_is_a_part_of_every_name(rule):
    assert str(Term.parse(f"4_{rule}->2_{rule}")) == f"4_{rule}->2_{rule}"
    for text in (f"int2_{rule}", f"pyramid@3_{rule}", f"evolution@3_{rule}"):
        assert str(Plan.parse(text)) == text
        assert Plan.parse(text.removesuffix(f"_{rule}")).by(rule, 8) == Plan.parse(text)
    assert str(Plan.parse("int8").by(rule, 8)) == str(Plan.parse(f"int8_{rule}").by("half_up", 8)) == "int8"
    assert str(Plan.parse(f"int2_{rule}").by("half_up", 8)) == f"int2_{rule}"
    with pytest.raises(ValueError, match="overflow bucket"):
        Slice(2, extra_precision=True, rule=rule)
    with pytest.raises(ValueError, match="leave out"):
        Plan.parse(f"pyramid@3+ep_{rule}")


def test_rows_say_by_which_rule_codes_were_trained_and_read():
    plain, floor = (Objective.parse(8, {"int8": 1, f"int4{end}": 1, f"int2{end}": 1}) for end in ("", "_floor"))
    int2, by_floor, whole = Slice(2), Slice(2, rule="floor"), Slice(8)
    assert [plain.method(part) for part in (int2, by_floor)] == ["MatQuant", "MatQuant, read by floor"]
    assert [floor.method(part) for part in (by_floor, int2, whole)] == [
        "MatQuant by floor",
        "MatQuant by floor, read by half_up",
        "MatQuant by floor",
    ]
    assert Objective.parse(8, {"int8": 1}).method(by_floor) == "Sliced int8, read by floor"


def test_an_objective_reads_what_it_dumps():
    objective = Objective.parse(8, {"int8": 0.1, "int4": 0.1, "int2": 1.0, "8->2": 1.0})
    dumped = objective.dump()
    assert Objective.parse(dumped["parent_bits"], dumped["terms"]) == objective  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parent_bits", "terms", "message"),
    [
        (4, {"int8": 1}, "int8 is wider than its int4 parent"),
        (8, {"2->8": 1}, "a teacher that is not wider than its student"),
        (4, {"8->2": 1}, "int8 is wider than its int4 parent"),
        (8, {}, "at least one term"),
        (8, {"int2": 0}, "weights are positive"),
        (8, {"int2": float("nan")}, "weights are positive"),
        (8, {"int8+ep": 1}, "no overflow bucket"),
        (8, {"int2": 1, "2": 1}, "give it once, with the sum of both weights"),
        (8, {"int4": 1, "int2_floor": 1}, "codes are trained for one rule"),
        (8, {"int8_floor": 1}, "which no rule changes"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(parent_bits, terms, message):
    with pytest.raises(ValueError, match=message):
        Objective.parse(parent_bits, terms)


@pytest.mark.parametrize(
    ("parent_bits", "terms", "read", "method", "interpolated"),
    [
        (8, {"int8": 1}, "int8", "Baseline", False),
        (8, {"int8": 1}, "int2", "Sliced int8", False),
        (2, {"int2": 1}, "int2", "Baseline", False),
        (8, {"int8": 0.1, "int4": 0.1, "int2": 1}, "int2", "MatQuant", False),
        (8, {"int8": 0.1, "int4": 0.1, "int2": 1}, "int6", "MatQuant", True),
        (8, {"int8": 0.1, "int4": 0.1, "int2": 1}, "int3", "MatQuant", True),
        (8, {"int2": 1}, "int8", "Single Precision", False),
        (8, {"int8": 1, "int4+ep": 1, "int2+ep": 1}, "int2+ep", "MatQuant + Extra Precision", False),
        (8, {"int8": 0.1, "int4": 0.1, "8->2": 1}, "int2", "MatQuant [8, 4, 8->2]", False),
    ],
)
def test_a_read_out_is_named_as_in_the_papers_tables(parent_bits, terms, read, method, interpolated):
    objective, part = Objective.parse(parent_bits, terms), Slice.parse(read)
    assert objective.method(part) == method
    assert objective.is_interpolated(part) is interpolated


def test_a_step_reads_students_and_teachers_once_each():
    objective = Objective.parse(8, {"int4": 1, "int2": 1, "8->2": 1, "8->4": 1})
    assert [str(part) for part in objective.slices] == ["int8", "int4", "int2"]


def test_plans_parse_and_print():
    assert Plan.parse("full").default is None
    assert str(Plan.parse("4")) == "int4"
    with pytest.raises(ValueError, match="'best' is not a read-out plan; write full, int4"):
        Plan.parse("best")


@pytest.mark.parametrize(("text", "near"), [("itn4", "int4"), ("int2+pe", "int2+ep"), ("piramid@3", "pyramid@3")])
def test_an_unknown_plan_is_refused_with_the_nearest_ones(text, near):
    with pytest.raises(ValueError, match=rf"did you mean .*{re.escape(near)}"):
        Plan.parse(text)


@pytest.mark.parametrize(
    ("label", "typed", "is_known"),
    [
        ("int2+ep", "int2+ep", True),
        ("pyramid@3", "pyramid@3", True),
        ("evolution@3-14deb0b8", "evolution@3", True),
        ("pyramid@3-14deb0b8", "pyramid@3-14deb0b8", False),  # a file that is called so
        ("int4-14deb0b8", "int4-14deb0b8", False),
        ("mine-14deb0b8", "mine-14deb0b8", False),
    ],
)
def test_a_plan_file_is_not_taken_for_the_plan_that_it_is_called_like(label, typed, is_known):
    assert Plan.typed(label) == typed
    assert (Plan.of_label(label) is not None) == is_known
