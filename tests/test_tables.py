"""The table says what was measured, under one protocol, and shows what was not."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.frame.load import COLUMNS, LoadedResults, load_frame
from analysis.frame.summary import stderr_of_mean, summary
from analysis.tables.drawing import to_html, to_markdown, to_text
from analysis.tables.summary_table import summary_table
from analysis.tables.typeset import MISSING
from evaluation.results.pack import pack, unpack
from evaluation.results.store import ResultStore, documents_path, write_documents
from evaluation.sources.table import PAPER_TASKS
from tests.made_results import MATQUANT, documents_of, measure, paper_cells, quantized, study, unquantized

if TYPE_CHECKING:
    from matquant.config.study import Study


def load(made: Study) -> LoadedResults:
    return load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results))


def text_of(loaded: LoadedResults) -> str:
    return to_text(summary_table(summary(loaded), loaded.tasks))


@pytest.fixture
def made(tmp_path) -> Study:
    return study(tmp_path, paper_cells())


def test_the_frame_has_a_row_for_every_cell_plan_task_and_metric(made):
    measure(made)
    loaded = load(made)
    assert tuple(loaded.frame.columns) == COLUMNS
    assert not loaded.problems
    assert loaded.missing.empty
    # 10 read-outs: 1 unquantized, 4 of the int8 parent, 1 of the int2 Baseline, 4 of MatQuant; acc, acc_norm, acc,
    # log_pplx and num_tokens in each.
    assert len(loaded.frame) == 10 * 5


def test_accuracies_stay_fractions_until_they_are_printed(made):
    measure(made)
    loaded = load(made)
    assert loaded.frame.loc[loaded.frame["metric"] == "acc", "value"].max() < 1
    assert "66.0" in text_of(loaded)


def test_the_headline_metric_is_acc_norm_where_there_is_one_and_acc_elsewhere(made):
    measure(made, accuracy=0.5)
    row = summary(load(made)).iloc[0]
    assert row["arc_easy"] == pytest.approx(0.66)
    assert row["arc_easy_stderr"] == 0.04
    assert row["boolq"] == pytest.approx(0.66)
    assert row["boolq_stderr"] == 0.03


def test_task_avg_is_the_plain_mean_with_the_error_of_independent_estimates(made):
    measure(made)
    rows = summary(load(made))
    np.testing.assert_allclose(rows["task_avg"], (rows["arc_easy"] + rows["boolq"]) / 2)
    np.testing.assert_allclose(rows["task_avg_stderr"], math.sqrt(0.04**2 + 0.03**2) / 2)


def test_the_error_of_a_mean_is_that_of_simulated_means():
    errors = np.array([0.01, 0.02, 0.03, 0.02, 0.01, 0.05])
    means = np.random.default_rng(0).normal(0.0, errors, size=(100_000, 6)).mean(axis=1)
    # The standard deviation of n samples is known to about 1 / sqrt(2 n) = 0.2 %.
    assert stderr_of_mean(errors[None])[0] == pytest.approx(means.std(), rel=0.01)


def test_task_avg_is_a_gap_when_one_of_its_tasks_is_missing(made):
    store = measure(made)
    for path in (store.folder / made.cells[2].id / "int2").glob("boolq-*.json"):
        path.unlink()
    loaded = load(made)
    row = summary(loaded).set_index("cell_id").loc[made.cells[2].id]
    assert math.isnan(row["task_avg"])
    assert math.isnan(row["task_avg_stderr"])
    assert row["arc_easy"] > 0
    assert loaded.missing[["plan", "task"]].values.tolist() == [["int2", "boolq"]]


def test_without_any_results_every_row_is_there_as_a_gap(made):
    loaded = load(made)
    assert len(loaded.missing) == len(loaded.expected) == 10 * 3
    lines = [line for line in text_of(loaded).splitlines() if "(OmniQuant)" in line]
    assert len(lines) == 9
    assert all(line.split().count(MISSING) == 5 for line in lines)


def test_rows_go_from_wide_to_narrow_and_methods_follow_the_paper(tmp_path):
    cells = (quantized({"int2": 1.0}), quantized(MATQUANT), *paper_cells()[:3])
    rows = summary(load(study(tmp_path, cells)))
    assert rows["bits"].is_monotonic_decreasing
    assert list(rows.loc[rows["plan"] == "int2", "method"]) == [
        "Sliced int8",
        "Baseline",
        "Single Precision",
        "MatQuant",
    ]


def test_interpolated_read_outs_are_marked_and_the_mark_is_explained(made):
    marked = [line for line in text_of(load(made)).splitlines() if "†" in line]
    assert len(marked) == 2
    assert marked[0].startswith("int3") or "MatQuant" in marked[0]
    assert "interpolated" in marked[1]


def test_only_the_best_value_as_printed_is_bold_and_never_an_unquantized_one(made):
    measure(made)
    table = to_markdown(summary_table(summary(load(made)), made.setup.readout.tasks))
    full, *rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert "**" not in full
    # All methods were given the same values: equal entries are all bold.
    assert all("**52.0**" in row for row in rows if row.startswith("| int2"))


def test_the_lower_log_perplexity_is_the_better_one(made):
    store = measure(made)
    path = next((store.folder / made.cells[2].id / "int2").glob("log_pplx-*.json"))
    result = store.read(path)
    store.put(dataclasses.replace(result, metrics={**result.metrics, "log_pplx": 1.25}), documents_of(result))
    table = to_markdown(summary_table(summary(load(made)), made.setup.readout.tasks))
    best = next(line for line in table.splitlines() if "**1.250 ± 0.020**" in line)
    assert best.startswith("| int2 | Baseline")


def test_a_terminal_of_130_columns_holds_the_table_of_six_tasks(tmp_path):
    cells = (
        *paper_cells(),
        quantized({**MATQUANT, "8->2": 1.0}),
        quantized({"int8": 1.0, "int4": 1.0, "int2+ep": 1.0}),
    )
    made = study(tmp_path, (*cells, quantized({**MATQUANT, "int8": 0.4})), tasks=tuple(PAPER_TASKS))
    measure(made)
    assert max(len(line) for line in text_of(load(made)).splitlines()) <= 130


def test_seeds_of_one_configuration_are_one_row_with_their_spread_as_its_error(tmp_path):
    made = study(tmp_path, [quantized(MATQUANT, seed=seed) for seed in (0, 1, 2)])
    measure(made)
    row = summary(load(made)).iloc[0]
    assert row["num_seeds"] == 3
    assert row["task_avg"] == pytest.approx(0.58 + 0.001)
    assert row["task_avg_stderr"] == pytest.approx(0.001)
    assert "3 seeds" in text_of(load(made))


def test_a_seed_that_was_not_measured_yet_is_not_counted(tmp_path):
    cells = [quantized(MATQUANT, seed=seed) for seed in (0, 1)]
    measure(study(tmp_path, cells[1:]))
    row = summary(load(study(tmp_path, cells))).iloc[0]
    assert row["num_seeds"] == 1
    assert row["task_avg_stderr"] == pytest.approx(0.025)


def test_rows_of_the_same_name_say_in_what_they_differ(tmp_path):
    rows = summary(load(study(tmp_path, [quantized(MATQUANT), quantized(MATQUANT, num_steps=9)])))
    assert set(rows["label"]) == {"MatQuant (OmniQuant), base.num_steps=2", "MatQuant (OmniQuant), base.num_steps=9"}


def test_a_corrupt_file_is_named_and_left_out(made):
    store = measure(made)
    path = next((store.folder / made.cells[3].id / "int4").glob("boolq-*.json"))
    path.write_text(path.read_text()[:40])
    loaded = load(made)
    assert [str(path) in problem for problem in loaded.problems] == [True]
    assert loaded.missing[["plan", "task"]].values.tolist() == [["int4", "boolq"]]


@pytest.mark.parametrize("content", ["[]", "{}", "17", '"text"', "\udcff", ""])
def test_a_file_that_is_no_result_is_named_whatever_it_holds(made, content):
    store = measure(made)
    path = next((store.folder / made.cells[0].id / "full").glob("boolq-*.json"))
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert [str(path) in problem for problem in load(made).problems] == [True]


def test_a_result_in_the_place_of_another_is_not_believed(made):
    store = measure(made)
    folder = store.folder / made.cells[3].id
    path = next((folder / "int8").glob("boolq-*.json"))
    (folder / "int2" / path.name).write_text(path.read_text())
    problems = load(made).problems
    assert len(problems) == 1
    assert "does not hold the result its name promises" in problems[0]


def test_limits_are_never_mixed_and_what_is_left_out_is_named(made):
    measure(made, limit=50, accuracy=0.1)
    measure(dataclasses.replace(made, cells=made.cells[:2]))
    loaded = load(made)
    assert set(loaded.frame.loc[loaded.frame["task"] == "boolq", "limit"]) == {100}
    assert summary(loaded)["arc_easy"].min() > 0.5
    assert any("left out" in problem and "limit 50 instead of 100" in problem for problem in loaded.problems)
    assert set(loaded.missing["cell_id"]) == {cell.id for cell in made.cells[2:]}


def test_results_of_another_protocol_than_asked_are_shown_but_named(made):
    measure(made, limit=50)
    loaded = load(made)
    assert loaded.missing.empty
    assert any("limit 50 instead of 100, as the read-out asks" in problem for problem in loaded.problems)


def test_models_may_differ_in_protocol_without_losing_a_row(tmp_path):
    made = study(tmp_path, [unquantized(), unquantized(name="other")])
    store = measure(made)
    for path in (store.folder / made.cells[1].id).glob("full/*.json"):
        result = store.read(path)
        path.unlink()
        store.put(dataclasses.replace(result, protocol={**result.protocol, "add_bos": True}), documents_of(result))
    loaded = load(made)
    assert not loaded.problems
    assert loaded.missing.empty


@pytest.mark.parametrize(
    ("field", "value"), [("lm_eval", "0.5"), ("batch_size", 8), ("limit", 7), ("data", "another revision")]
)
def test_models_that_were_measured_differently_are_named_with_what_differs(tmp_path, field, value):
    made = study(tmp_path, [unquantized(), unquantized(name="other")])
    store = measure(made)
    for path in (store.folder / made.cells[1].id).glob("full/boolq*.json"):
        result = store.read(path)
        path.unlink()
        store.put(dataclasses.replace(result, protocol={**result.protocol, field: value}), documents_of(result))
    loaded = load(made)
    assert loaded.missing.empty
    (problem,) = [problem for problem in loaded.problems if "do not compare them" in problem]
    assert problem.startswith(f"boolq: models differ in {field}: ")
    assert f"{value} for other" in problem


ODD_VALUES = [None, True, -1, 10**400, "text", [], {}, [1], {"acc": "x"}, math.nan, math.inf]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_result_file_holds_the_table_is_drawn_and_the_file_named(made, data):
    """Replaces one field of one file by something else."""
    store = measure(made)
    path = next((store.folder / made.cells[3].id / "int4").glob("boolq-*.json"))
    whole = json.loads(path.read_text())
    place = data.draw(st.sampled_from([(name,) for name in whole] + [("metrics", "acc"), ("overhead", "grid_bits")]))
    inner = whole
    for name in place[:-1]:
        inner = inner[name]
    value = data.draw(st.sampled_from(ODD_VALUES))
    inner[place[-1]] = value
    path.write_text(json.dumps(whole))
    loaded = load(made)
    text_of(loaded)
    named = any(str(path) in problem for problem in loaded.problems)
    gaps = loaded.missing[["cell_id", "plan", "task"]].values.tolist()
    assert gaps == ([[made.cells[3].id, "int4", "boolq"]] if named else [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_a_gap_and_named(made, value):
    store = measure(made)
    path = next((store.folder / made.cells[3].id / "int4").glob("boolq-*.json"))
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "metrics": {"acc": value}}))
    loaded = load(made)
    assert [str(path) in problem for problem in loaded.problems] == [True]
    assert loaded.missing[["plan", "task"]].values.tolist() == [["int4", "boolq"]]


@pytest.mark.parametrize("edit", [{"acc": "0.5"}, {"acc": 1.5}, {"acc": 0.5, "acc_stderr": "x"}])
@pytest.mark.parametrize("packed", [False, True])
def test_an_edited_metric_is_a_gap_and_named_loose_or_packed(made, edit, packed, monkeypatch):
    store = measure(made)
    path = next((store.folder / made.cells[3].id / "int4").glob("boolq-*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": edit}))
    if packed:
        assert [str(path) in problem for problem in pack(store.folder).problems] == [True]
        # An earlier version packed without looking at values.
        monkeypatch.setattr("evaluation.results.store.fault_of", lambda _: None)
        assert not pack(store.folder).problems
        monkeypatch.undo()
        assert not path.exists()
    loaded = load(made)
    (problem,) = loaded.problems
    assert str(path) in problem
    assert loaded.missing[["plan", "task"]].values.tolist() == [["int4", "boolq"]]
    if packed:
        assert not unpack(store.folder).problems  # as it was, with its fault
        assert path.exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "shorter"])
def test_documents_that_are_not_those_of_their_result_are_a_gap_and_named(made, damage):
    store = measure(made)
    path = next((store.folder / made.cells[3].id / "int4").glob("boolq-*.json"))
    documents = documents_path(path)
    match damage:
        case "missing":
            documents.unlink()
        case "cut":
            documents.write_bytes(documents.read_bytes()[:-5])
        case _:
            few = dataclasses.replace(store.read(path), num_documents=3)
            write_documents(path, pa.table(documents_of(few)))
    loaded = load(made)
    (problem,) = loaded.problems
    assert path.stem in problem
    assert "evaluate again" in problem
    assert loaded.missing[["plan", "task"]].values.tolist() == [["int4", "boolq"]]


def test_cells_of_one_model_that_held_several_weights_are_named(made):
    store = measure(made)
    for cell, content in zip(made.cells[:2], ("sha256:aa", "sha256:bb"), strict=True):
        for path in store.paths(cell.id):
            result = dataclasses.replace(store.read(path), sources={"model": content})
            store.put(result, documents_of(result))
    (problem,) = load(made).problems
    assert problem.startswith(f"{made.cells[0].id} and {made.cells[1].id} were made from 2 contents of one model")
    assert set(load(made).frame["model_content"].dropna()) == {"sha256:aa", "sha256:bb"}


def test_results_of_two_checkpoints_of_one_cell_are_named(made):
    store = measure(made)
    path = next((store.folder / made.cells[3].id / "int8").glob("boolq-*.json"))
    result = dataclasses.replace(store.read(path), checkpoint="retrained")
    store.put(result, documents_of(result))
    assert [made.cells[3].id in problem for problem in load(made).problems] == [True]


def test_the_extra_bit_shows_in_the_bits_it_costs(tmp_path):
    made = study(tmp_path, [quantized({"int8": 1.0, "int2+ep": 1.0})], plans=("int8", "int4", "int2"))
    measure(made)
    rows = summary(load(made))
    assert list(rows["plan"]) == ["int8", "int4+ep", "int2+ep"]
    assert list(rows["effective_bits"]) == [8, 4.05, 2.05]
    assert "  2.05" in text_of(load(made))


def test_what_the_papers_count_of_bits_leaves_out_stands_beside_it(tmp_path):
    ep = quantized({"int8": 0.1, "int4+ep": 0.1, "int2+ep": 1.0})
    made = study(tmp_path, [unquantized(), ep], plans=("int8", "int2"))
    measure(made)
    rows = summary(load(made)).set_index("plan")
    assert rows.loc["int2+ep", ["grid_bits", "overflow_bits", "model_bits"]].tolist() == [1.25, 0.8, 10.5]
    assert rows.loc["full", ["grid_bits", "overflow_bits", "model_bits"]].tolist() == [0, 0, 16]
    assert MISSING not in text_of(load(made))  # everything is measured: no gap, and no legend of gaps
    page = to_html(summary_table(rows.reset_index(), made.setup.readout.tasks))
    assert all(f">{head}<" in page for head in ("+ grid", "+ overflow", "Stored"))
    assert "  10.5  " in text_of(load(made))
    assert "+ grid  " not in text_of(load(made))


def test_the_overflow_column_is_there_only_where_something_overflows(tmp_path):
    made = study(tmp_path, paper_cells())
    measure(made)
    heads = summary_table(summary(load(made)), made.setup.readout.tasks).heads
    assert "+ grid" in heads
    assert "+ overflow" not in heads


def test_html_escapes_names_and_marks_gaps(tmp_path):
    made = study(tmp_path, [unquantized(name="<script>"), unquantized(name="b&b")])
    drawn = to_html(summary_table(summary(load(made)), made.setup.readout.tasks))
    assert "&lt;script&gt;" in drawn
    assert "<script>" not in drawn
    assert 'class="missing"' in drawn


def test_markdown_rows_have_as_many_fields_as_the_head(tmp_path):
    made = study(tmp_path, [*paper_cells(), unquantized(name="a|b"), quantized({**MATQUANT, "8->2": 1.0})])
    measure(made)
    lines = to_markdown(summary_table(summary(load(made)), made.setup.readout.tasks)).splitlines()
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    assert {line.replace("\\|", "").count("|") for line in rows} == {10}
