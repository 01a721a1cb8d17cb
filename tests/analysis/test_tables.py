"""The table says what was measured, under one protocol, and shows what was not."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.frame.best import with_best
from analysis.frame.load import COLUMNS, LoadedResults, load_frame
from analysis.frame.significance import against_reference
from analysis.frame.summary import stderr_of_mean, summary
from analysis.tables.drawing import to_html, to_latex, to_markdown, to_text
from analysis.tables.summary_table import summary_table
from analysis.tables.typeset import MISSING
from evaluation.results.metrics import error_name, headline_metric, higher_is_better, is_fraction
from evaluation.results.pack import pack, unpack
from evaluation.results.store import ResultStore, documents_path, write_documents
from evaluation.sources.table import PAPER_TASKS
from matquant.config.cell import EmbeddedText
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


def test_what_cannot_be_told_apart_is_not_bold(made):
    measure(made)
    loaded = load(made)
    assert "**" not in to_markdown(summary_table(with_best(summary(loaded), loaded), loaded.tasks))
    assert "Bold" not in to_markdown(summary_table(summary(loaded), loaded.tasks))


def test_only_what_is_significantly_better_than_each_rival_is_bold(made):
    store = measure(made)
    path = next((store.folder / made.cells[2].id / "int2").glob("log_pplx-*.json"))
    result = store.read(path)
    better = dataclasses.replace(result, metrics={**result.metrics, "log_pplx": 1.25})
    store.put(better, documents_of(better))
    loaded = load(made)
    table = to_markdown(summary_table(with_best(summary(loaded), loaded), loaded.tasks))
    (bold,) = [line for line in table.splitlines() if line.startswith("|") and "**" in line]
    assert bold.startswith("| int2 | Baseline")
    assert bold.count("**") == 2
    assert "**1.250 ± 0.020 ▲**" in bold or "**1.250 ± 0.020**" in bold
    assert "Bold: significantly better than each other row of its data type, paired over the same documents" in table
    assert r"\textbf{1.250" in to_latex(summary_table(with_best(summary(loaded), loaded), loaded.tasks))


def test_a_terminal_of_130_columns_holds_the_table_of_six_tasks(tmp_path):
    cells = (
        *paper_cells(),
        quantized({**MATQUANT, "8->2": 1.0}),
        quantized({"int8": 1.0, "int4": 1.0, "int2+ep": 1.0}),
    )
    made = study(tmp_path, (*cells, quantized({**MATQUANT, "int8": 0.4})), tasks=tuple(PAPER_TASKS))
    measure(made)
    assert max(len(line) for line in text_of(load(made)).splitlines()) <= 130


def test_seeds_of_one_configuration_are_one_row_with_both_errors_named(tmp_path):
    made = study(tmp_path, [unquantized(), *(quantized(MATQUANT, seed=seed) for seed in (0, 1, 2))])
    measure(made)
    rows = summary(load(made))
    row = rows[rows["plan"] == "int8"].iloc[0]
    assert row["num_seeds"] == 3
    assert row["task_avg"] == pytest.approx(0.58 + 0.001)
    assert row["task_avg_stderr"] == pytest.approx(0.025)  # that of one seed: all answer the same documents
    assert row["task_avg_spread"] == pytest.approx(0.001)
    text = text_of(load(made))
    assert "58.1 ± 2.5 docs ± 0.1 seeds" in text
    assert "66.0 ± 2.5 docs" in text  # the unquantized row, which has no seed
    assert "the standard deviation between seeds" in text


def test_rows_say_how_many_seeds_they_have_where_they_differ(tmp_path):
    cells = [quantized({"int2": 1.0}, parent_bits=2), *(quantized(MATQUANT, seed=seed) for seed in (0, 1))]
    made = study(tmp_path, cells)
    measure(made)
    text = text_of(load(made))
    assert "Baseline (OmniQuant), 1 seed" in text
    assert "MatQuant (OmniQuant), 2 seeds" in text


def test_seeds_with_gaps_are_not_in_the_mean_of_the_others(tmp_path):
    made = study(tmp_path, [quantized(MATQUANT, seed=seed) for seed in (0, 1, 9)])
    store = measure(made)
    next((store.folder / made.cells[2].id / "int8").glob("boolq-*.json")).unlink()
    rows = summary(load(made)).set_index("plan")
    assert rows.loc["int8", "num_seeds"] == 2
    assert rows.loc["int8", "task_avg"] == pytest.approx(0.58 + 0.0005)
    assert rows.loc["int4", "num_seeds"] == 3
    assert "without 1 more of its seeds, which lack some of the tasks" in text_of(load(made))


def test_a_seed_that_was_not_measured_yet_is_not_counted(tmp_path):
    cells = [quantized(MATQUANT, seed=seed) for seed in (0, 1)]
    measure(study(tmp_path, cells[1:]))
    row = summary(load(study(tmp_path, cells))).iloc[0]
    assert row["num_seeds"] == 1
    assert row["task_avg_stderr"] == pytest.approx(0.025)
    assert math.isnan(row["task_avg_spread"])


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


# --- the protocol that is asked for ----------------------------------------------------------------------------------


def remeasured(made: Study, **facts: Any) -> Study:
    """The same study, asking for something else."""
    readout = made.setup.readout.model_copy(update=facts)
    return dataclasses.replace(made, setup=made.setup.model_copy(update={"readout": readout}))


TEXT_OF_8 = EmbeddedText(kind="embedded", num_sequences=8, sequence_length=16)
OTHERS = [
    ({"limit": 50}, "limit 50 instead of 100", "readout.limit=50"),
    ({"limit": None}, "limit none instead of 100", "readout.limit=null"),
    ({"batch_size": 8}, "batch_size 8 instead of 4", "readout.batch_size=8"),
    ({"dtype": "float32"}, "dtype float32 instead of bfloat16", "readout.dtype=float32"),
    ({"arc_split": "validation"}, "split validation instead of test", "readout.arc_split=validation"),
    ({"cut_contexts": True}, "cut_contexts True instead of False", "readout.cut_contexts=true"),
    ({"perplexity": TEXT_OF_8}, "num_sequences 8 instead of 4", "readout.perplexity.num_sequences=8"),
]


@pytest.mark.parametrize(("facts", "difference", "typed"), OTHERS)
def test_numbers_of_another_protocol_are_gaps_and_named_with_the_option_that_shows_them(made, facts, difference, typed):
    measure(remeasured(made, **facts), accuracy=0.1)
    loaded = load(made)
    (sentence,) = (*loaded.problems, *loaded.others)
    assert f" with {difference} are not shown; add {typed} to show them" in sentence
    assert sentence.startswith("nothing was measured as this command asks: ") == loaded.frame.empty
    shown = load(remeasured(made, **facts))
    assert (shown.missing.empty, shown.others) == (True, ())
    measure(made)
    loaded = load(made)
    assert loaded.missing.empty
    assert loaded.problems == ()
    assert summary(loaded)["arc_easy"].min() > 0.5
    assert [difference in other for other in loaded.others] == [True]


def test_other_documents_than_the_ones_asked_for_are_never_shown(made):
    """Of a source the tables know what it can mean: a split of the hub's data set, whatever its commit."""
    store = measure(made)
    path = next((store.folder / made.cells[0].id / "full").glob("arc_easy-*.json"))
    result = store.read(path)
    path.unlink()
    stored = "allenai/ai2_arc/ARC-Easy@0123abc/test"
    store.put(dataclasses.replace(result, protocol={**result.protocol, "data": stored}), documents_of(result))
    loaded = load(made)
    assert loaded.missing[["plan", "task"]].values.tolist() == [["full", "arc_easy"]]
    assert "source hub instead of embedded is not shown; add readout.source=hub to show them" in loaded.others[0]
    asked = load(remeasured(made, source="hub"))
    assert asked.frame["task"].unique().tolist() == ["arc_easy", "log_pplx"]
    assert load(remeasured(made, source="hub", arc_split="validation")).frame["task"].unique().tolist() == ["log_pplx"]


def test_documents_of_a_folder_are_the_ones_that_it_holds_now(tmp_path):
    folder = tmp_path / "mine" / "boolq"
    folder.mkdir(parents=True)
    (folder / "validation.jsonl").write_text('{"label": 1}\n')
    facts = {"source": "folder", "data_dir": str(tmp_path / "mine"), "tasks": ("boolq",)}
    made = study(tmp_path, [unquantized()], **facts)
    measure(made)
    assert load(made).missing.empty
    shown = load(remeasured(made, source="embedded", data_dir=None))
    assert f"add readout.source=folder readout.data_dir={tmp_path / 'mine'} to show them" in shown.others[0]
    (folder / "validation.jsonl").write_text('{"label": 0}\n')
    loaded = load(made)
    assert loaded.missing["task"].tolist() == ["boolq"]
    assert "run the same command with `matquant run` to measure anew" in loaded.others[0]
    (folder / "validation.jsonl").unlink()
    assert load(made).missing.empty  # results that were copied to where their documents are not


def test_models_may_differ_in_protocol_without_losing_a_row(tmp_path):
    made = study(tmp_path, [unquantized(), unquantized(name="other", add_bos=True)])
    measure(made)
    loaded = load(made)
    assert not loaded.problems
    assert loaded.missing.empty


def with_version(store: ResultStore, cell_id: str, version: str, *, finished: str) -> None:
    """Results of one more version of lm-eval, beside those of the installed one."""
    for path in (store.folder / cell_id).glob("full/boolq*.json"):
        result = store.read(path)
        facts = {"protocol": {**result.protocol, "lm_eval": version}, "provenance": {"finished": finished}}
        store.put(dataclasses.replace(result, **facts), documents_of(result))
        if result.protocol["lm_eval"] != version:
            return


def test_of_two_versions_of_lm_eval_the_installed_one_is_shown(made):
    store = measure(made)
    with_version(store, made.cells[0].id, "0.3", finished="2027-01-01T00:00:00Z")
    loaded = load(made)
    assert loaded.missing.empty
    assert loaded.problems == ()
    assert "lm_eval 0.3 instead of " in loaded.others[0]


def test_results_of_another_version_of_lm_eval_alone_are_shown_and_named(tmp_path):
    made = study(tmp_path, [unquantized(), unquantized(name="other")])
    store = measure(made)
    with_version(store, made.cells[1].id, "0.3", finished="2027-01-01T00:00:00Z")
    for path in (store.folder / made.cells[1].id).glob("full/boolq*.json"):
        if store.read(path).protocol["lm_eval"] != "0.3":
            path.unlink()
    loaded = load(made)
    assert loaded.missing.empty
    old, mixed, average = loaded.problems
    assert "measured with lm_eval 0.3, and " in old
    assert "`matquant run` with the same options measures again" in old
    assert mixed.startswith("boolq: models differ in lm_eval: ")
    assert average.startswith("Task Avg is over tasks that differ in lm_eval: ")


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "headline"),
    [
        (("acc", "acc_stderr", "acc_norm"), "acc_norm"),
        (("exact_match,strict-match", "exact_match_stderr,strict-match"), "exact_match,strict-match"),
        (("exact_match,flexible-extract", "exact_match,strict-match"), "exact_match,strict-match"),
        (("f1_stderr", "f1"), "f1"),
        (("perplexity", "acc"), "acc"),
        (("word_perplexity", "byte_perplexity", "bits_per_byte"), "word_perplexity"),
        (("some_metric", "another"), "some_metric"),
        (("num_tokens", "log_pplx", "log_pplx_stderr"), "log_pplx"),
        (("acc_stderr",), None),
    ],
)
def test_one_rule_names_the_metric_of_a_task(metrics, headline):
    assert headline_metric(metrics) == headline


@pytest.mark.parametrize(
    ("metric", "share", "higher"),
    [
        ("acc", True, True),
        ("exact_match,strict-match", True, True),
        ("prompt_level_strict_acc", True, True),
        ("f1", False, True),
        ("bleu", False, True),
        ("log_pplx", False, False),
        ("word_perplexity", False, False),
        ("bits_per_byte", False, False),
        ("ter", False, False),
    ],
)
def test_a_metric_has_a_unit_and_a_direction(metric, share, higher):
    assert (is_fraction(metric), higher_is_better(metric)) == (share, higher)


def test_the_error_of_a_metric_has_its_filter():
    assert error_name("acc") == "acc_stderr"
    assert error_name("exact_match,strict-match") == "exact_match_stderr,strict-match"


def put_metric(made: Study, task: str, metric: str, values: dict[str, float]) -> None:
    """Gives the results of a task another metric: `values` by cell id."""
    store = ResultStore(made.setup.paths.results)
    for cell in made.cells:
        for path in (store.folder / cell.id).glob(f"*/{task}-*.json"):
            result, value = store.read(path), values[cell.id]
            metrics = {metric: value, error_name(metric): 0.05}
            documents = {"doc_id": [*range(100)], metric: [int(number < 100 * value) for number in range(100)]}
            store.put(dataclasses.replace(result, metrics=metrics), documents)


def test_every_metric_of_a_generative_task_is_shown_and_compared(made):
    measure(made)
    values = {cell.id: 0.9 if number == 3 else 0.2 for number, cell in enumerate(made.cells)}
    put_metric(made, "boolq", "exact_match,strict-match", values)
    loaded = load(made)
    rows = summary(loaded)
    assert loaded.missing.empty
    assert set(rows["boolq"]) == {0.2, 0.9}
    assert rows["task_avg"].tolist() == ((rows["arc_easy"] + rows["boolq"]) / 2).tolist()
    comparisons = against_reference(rows, loaded)
    table = summary_table(rows, loaded.tasks, comparisons, loaded.metrics)
    assert "BoolQ exact_match, strict-match ↑" in table.heads
    assert "90.0 ▲" in to_text(table)


def test_a_metric_that_is_no_share_is_shown_as_it_is_and_averaged_with_nothing(made):
    measure(made)
    values = {cell.id: 0.9 if number == 3 else 0.2 for number, cell in enumerate(made.cells)}
    put_metric(made, "boolq", "word_perplexity", values)
    loaded = load(made)
    rows = summary(loaded)
    assert rows["task_avg"].tolist() == rows["arc_easy"].tolist()
    table = summary_table(rows, loaded.tasks, against_reference(rows, loaded), loaded.metrics)
    assert "BoolQ word_perplexity ↓" in table.heads
    text = to_text(table)
    assert "0.900 ▼" in text  # less would be better
    assert "Task Avg is without BoolQ" in text


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_none_of_the_answers_right_are_no_certainty(made, share):
    store = measure(made)
    path = next((store.folder / made.cells[0].id / "full").glob("boolq-*.json"))
    result = dataclasses.replace(store.read(path), metrics={"acc": share, "acc_stderr": 0.0}, num_documents=20)
    store.put(result, {"doc_id": [*range(20)], "acc": [int(share)] * 20})
    rows = summary(load(made))
    assert rows.loc[0, "boolq_stderr"] == pytest.approx(math.sqrt(22 / 24 * 2 / 24 / 24))
    text = text_of(load(made))
    assert "bfloat16" in text
    assert "unquantized [1]" in text
    assert "[1] all answers of a task are right, or all are wrong" in text


def test_a_note_on_rows_is_printed_once_with_its_sign(made):
    measure(made)
    rows = summary(load(made))
    matquant = rows["method"] == "MatQuant"
    rows["notes"] = [("a fact",) if of_matquant else () for of_matquant in matquant]
    text = to_text(summary_table(rows, made.setup.readout.tasks))
    assert text.count("MatQuant (OmniQuant) [1]") + text.count("MatQuant (OmniQuant) † [1]") == 4
    assert text.count("[1] a fact.") == 1


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


def test_a_cell_of_several_weights_is_named_once(made):
    store = measure(made)
    for one, content in zip(store.paths(made.cells[0].id), ("sha256:aa", "sha256:bb"), strict=False):
        result = dataclasses.replace(store.read(one), sources={"model": content})
        store.put(result, documents_of(result))
    (problem,) = load(made).problems
    assert problem.startswith(f"{made.cells[0].id} was made from 2 contents of one model")


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
