"""Packing: two files that say what all loose files say, whatever is in them and whenever it is interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analysis.figures.gallery import plots
from analysis.report.building import numbers_of, text_of
from analysis.report.compare import measured
from analysis.report.report import Report
from benchmarks.startup import finished_study
from evaluation.protocol import is_complete, missing, protocols, survey
from evaluation.results import pack as packing
from evaluation.results.pack import main, pack, same_bits, unpack
from evaluation.results.packed import DOCUMENTS, FACTS, DocumentRows, Facts, PackedEntry, packed_facts, write_documents
from evaluation.results.readouts import readout_rows
from evaluation.results.soundness import fault_of
from evaluation.results.store import Result, ResultStore, documents_path, read_documents
from matquant.checkout import PROJECT
from matquant.command import main as command
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.notation import Plan
from tests.made_results import measure, paper_cells, study

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matquant.config.study import Study

PROTOCOL = {"task": "piqa", "limit": 10, "dtype": "bfloat16"}
RESULT = Result("cell-1", "int4", "piqa", PROTOCOL, {"acc": 0.5}, 2, 4.0)
OUTCOMES = {"doc_id": [0, 300], "acc": [1, 0], "f1": [0.25, None]}
PACKED = {FACTS, DOCUMENTS}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content_of(store: ResultStore, cell_ids: tuple[str, ...]) -> list[Any]:
    """Everything that can be read of some cells from a store."""
    return [
        [str(result) + json.dumps(store.documents(result.key)) for result in store.results(cell_id)]
        for cell_id in cell_ids
    ]


@pytest.fixture
def store(tmp_path) -> ResultStore:
    """Two cells with all kinds of files."""
    store = ResultStore(tmp_path / "results")
    for cell_id in CELLS:
        for plan in ("int4", "int2"):
            store.put(dataclasses.replace(RESULT, cell_id=cell_id, plan=plan), OUTCOMES)
        store.put_cell(cell_id, {"name": "é"})
        store.put_codes(cell_id, {"histogram": [1, 2]})
    store.put_plan("cell-1", "evolution@3", {"layers": {"a": "int2"}})
    (store.folder / "cell-1" / "train.jsonl").write_text('{"step": 0, "int2": 0.5}\n{"step": 1, "int2": 0.25}\n')
    return store


CELLS = ("cell-1", "cell-2")


@pytest.fixture
def made(tmp_path) -> Study:
    made = study(tmp_path, paper_cells())
    measure(made)
    return made


# --- the same, packed and loose --------------------------------------------------------------------------------------


NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**31), 2**31 - 1)
CELLS_OF_A_COLUMN = (
    st.integers(0, 1),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(),
    st.booleans(),
    st.text(st.characters(blacklist_categories=("Cs",)), max_size=5),
    st.none(),
)


@st.composite
def measurements(draw: st.DrawFn) -> tuple[Result, Mapping[str, list[Any]]]:
    """A result of some task, with columns of its own."""
    count = draw(st.integers(1, 4))
    columns: dict[str, list[Any]] = {"doc_id": list(range(count))}
    for name in draw(st.lists(NAMES, max_size=3)):
        kind = draw(st.sampled_from(CELLS_OF_A_COLUMN))
        columns[name] = draw(st.lists(kind | st.none(), min_size=count, max_size=count))
    task = draw(st.text("abcé_", min_size=1, max_size=4))
    metrics = draw(st.dictionaries(NAMES, NUMBERS, max_size=3))
    cell_id, plan = draw(st.sampled_from(CELLS)), draw(st.sampled_from(("int4", "int2+ep")))
    result = Result(cell_id, plan, task, PROTOCOL, metrics, count, 4.0)
    assume(fault_of(result) is None)
    return result, columns


@given(st.lists(measurements(), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_whatever_was_measured_is_read_the_same_packed_and_loose(tmp_path_factory, results):
    store = ResultStore(tmp_path_factory.mktemp("any"))
    for result, documents in results:
        store.put(result, documents)
    loose, results_of = files_of(store.folder), {cell_id: list(store.results(cell_id)) for cell_id in CELLS}
    tables = {path: read_documents(store.folder / path) for path in loose if path.endswith(".json")}
    content = content_of(store, CELLS)

    assert not pack(store.folder).problems
    packed = files_of(store.folder)
    assert set(packed) == PACKED
    assert {cell_id: list(store.results(cell_id)) for cell_id in CELLS} == results_of
    assert content_of(store, CELLS) == content
    assert all(store.has(result.key) for of_cell in results_of.values() for result in of_cell)

    assert not unpack(store.folder).problems
    assert {path: text for path, text in files_of(store.folder).items() if path.endswith(".json")} == {
        path: text for path, text in loose.items() if path.endswith(".json")
    }
    assert all(same_bits(read_documents(store.folder / path), table) for path, table in tables.items())
    pack(store.folder)
    assert files_of(store.folder) == packed


def test_every_kind_of_file_is_packed_and_comes_back_to_the_byte(store):
    loose = files_of(store.folder)
    outcome = pack(store.folder)
    assert (outcome.num_results, outcome.num_others, outcome.problems) == (4, 6, ())
    assert set(files_of(store.folder)) == PACKED
    assert not list(store.folder.glob("*/"))[2:]
    assert json.loads(store.text("cell-2", "codes.json")) == {"histogram": [1, 2]}
    assert store.text("cell-1", "train.jsonl").count("\n") == 2
    assert store.plan("cell-1", Plan.parse("evolution@3")).layers is not None
    assert store.names("cell-1", "int4") == {store.path(RESULT.key).name}
    assert store.readouts() == ["cell-1:int2", "cell-1:int4", "cell-2:int2", "cell-2:int4"]
    unpack(store.folder)
    assert files_of(store.folder) == loose


def test_bits_tell_apart_what_compares_equal_and_know_nan():
    def table(value: float) -> pa.Table:
        return pa.table({"x": pa.array([value, None])})

    assert same_bits(table(float("nan")), table(float("nan")))
    assert not same_bits(table(0.0), table(-0.0))
    assert not same_bits(table(1.0), pa.table({"x": pa.array([1, None])}))


def test_a_study_is_drawn_and_compared_the_same(made):
    results = ResultStore(made.setup.paths.results)
    pair = f"{made.cells[3].id}:int2"

    wanted = protocols(made.setup.readout, add_bos=False)

    def seen() -> list[Any]:
        values = {key: list(found.values) for key, found in measured(pair, results).items()}
        return [text_of(numbers_of(made)), values, [readout_rows(results, cell.id, wanted) for cell in made.cells]]

    loose = seen()
    pack(results.folder)
    assert seen() == loose


def test_a_finished_study_is_planned_as_finished_and_one_result_less_as_missing(tmp_path):
    finished = load_study(finished_study(tmp_path))
    results, readout = ResultStore(finished.setup.paths.results), finished.setup.readout
    one = sorted(results.folder.glob("*/*/*.json"))[0]
    gone = (one, documents_path(one))
    for missing_results in (0, 1):
        if missing_results:
            unpack(results.folder)
            for path in gone:
                path.unlink()
        pack(results.folder)
        gaps = survey(finished.cells, readout, results)
        assert sum(len(tasks) for plans in gaps.values() for tasks in plans.values()) == missing_results
        assert sum(not is_complete(cell, readout, results) for cell in finished.cells) == missing_results
        assert sum(bool(missing(cell, readout, results)) for cell in finished.cells) == missing_results


def test_a_training_log_that_lies_with_the_results_is_drawn(made):
    results = ResultStore(made.setup.paths.results)
    (results.folder / made.cells[3].id / "train.jsonl").write_text(
        '{"step": 0, "int2": 0.5}\n{"step": 1, "int2": 0.2}\n'
    )
    pack(results.folder)
    numbers = numbers_of(made)
    assert "curves" in [plot.name for plot in plots(made, numbers.loaded, numbers.rows)]


def test_a_report_is_drawn_again_when_what_is_packed_has_changed(made, monkeypatch):
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))
    pack(made.setup.paths.results)
    record = Report(made).draw().record
    drawn = json.loads(record.read_text())["sources"]
    Report(made).draw()
    assert json.loads(record.read_text())["sources"] == drawn
    ResultStore(made.setup.paths.results).put_plan(made.cells[3].id, "evolution@3", {"layers": {}})
    pack(made.setup.paths.results)
    Report(made).draw()
    assert json.loads(record.read_text())["sources"] != drawn


@pytest.mark.parametrize("folder", sorted(PROJECT.glob("studies/*/results")), ids=lambda folder: folder.parent.name)
def test_the_results_that_come_with_the_source_are_whole(folder):
    facts = packed_facts(folder)
    assert facts is not None
    committed = ResultStore(folder)
    results = [result for cell_id in facts.names for result in committed.results(cell_id)]
    assert len(results) >= len(facts.names) > 0
    assert all(committed.has(result.key) for result in results)


# --- loose files beside packed ones ----------------------------------------------------------------------------------


def test_a_loose_result_wins_over_its_packed_twin_and_is_merged(store):
    pack(store.folder)
    newer = dataclasses.replace(RESULT, metrics={"acc": 1.0}, num_documents=3)
    store.put(newer, {"doc_id": [0, 1, 2], "acc": [1, 1, 1]})
    assert newer in list(store.results("cell-1"))
    assert store.documents(newer.key)["acc"] == [1, 1, 1]
    loose = content_of(store, CELLS)
    assert pack(store.folder).num_results == 4
    assert set(files_of(store.folder)) == PACKED
    assert content_of(store, CELLS) == loose


def test_what_is_recorded_packed_is_not_written_again(store):
    pack(store.folder)
    store.put_cell("cell-1", {"name": "another"})
    store.put_codes("cell-1", {"histogram": [1, 2]})
    assert set(files_of(store.folder)) == PACKED
    store.put_codes("cell-1", {"histogram": [2, 2]})
    assert json.loads(store.text("cell-1", "codes.json")) == {"histogram": [2, 2]}


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "no json"])
def test_a_damaged_loose_twin_counts_as_missing_is_named_and_hides_nothing_for_good(store, text):
    pack(store.folder)
    before = content_of(store, CELLS)
    path = store.path(RESULT.key)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert not store.has(RESULT.key)
    assert (path.name in store.names("cell-1", "int4")) == bool(text)
    for outcome in (pack(store.folder), unpack(store.folder)):
        (problem,) = outcome.problems
        assert str(path) in problem
        assert path.read_text() == text
    path.unlink()
    assert content_of(store, CELLS) == before


@pytest.mark.parametrize("damage", ["cut short", "without documents", "too few documents", "another place", "no text"])
def test_a_damaged_result_stays_loose_and_is_named(store, damage):
    path = store.path(RESULT.key)
    if damage == "cut short":
        path.write_text(path.read_text()[:20])
    elif damage == "without documents":
        documents_path(path).unlink()
    elif damage == "too few documents":
        store.put(dataclasses.replace(RESULT, num_documents=3), OUTCOMES)
    elif damage == "another place":
        path = path.rename(path.with_name("boolq-00000000.json"))
        documents_path(store.path(RESULT.key)).rename(documents_path(path))
    else:
        path.write_bytes(b"\xff\xfe")
    left = {name: text for name, text in files_of(store.folder).items() if name.startswith("cell-1/int4/")}
    outcome = pack(store.folder)
    assert outcome.num_results == 3
    assert any(str(path) in problem or str(documents_path(path)) in problem for problem in outcome.problems)
    assert {name: text for name, text in files_of(store.folder).items() if name not in PACKED} == left


def test_a_file_that_is_not_understood_stays_and_is_named(store):
    others = {"notes.json": "{}", "train.jsonl": '{"step": 0}\n{"st', "int4/table.csv": "a,b"}
    for name, text in others.items():
        (store.folder / "cell-2" / name).write_text(text)
    pq.write_table(pa.table({"x": [1]}), store.folder / "cell-2" / "int2" / "alone-1.parquet")
    problems = pack(store.folder).problems
    assert len(problems) == 4
    left = {*others, "int2/alone-1.parquet"}
    assert all(any(f"cell-2/{name}" in problem for problem in problems) for name in left)
    assert set(files_of(store.folder)) == PACKED | {f"cell-2/{name}" for name in left}


def test_documents_of_a_kind_that_nobody_writes_stay_loose(store):
    path = documents_path(store.path(RESULT.key))
    pq.write_table(pa.table({"doc_id": [0, 1], "acc": [[1], [0]]}), path)
    (problem,) = pack(store.folder).problems
    assert "has a column acc of type list" in problem
    assert path.exists()


# --- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [pack, unpack])
def test_an_interruption_at_any_moment_loses_nothing(store, command, monkeypatch, tmp_path):
    """Interrupts before each rename or removal of a file, in a half packed folder with newer loose files."""
    pack(store.folder)
    store.put(dataclasses.replace(RESULT, metrics={"acc": 1.0}), OUTCOMES)
    store.put(dataclasses.replace(RESULT, task="boolq"), {"doc_id": [4, 5], "acc_norm": [0.5, None]})
    before, kept = content_of(store, CELLS), files_of(store.folder)
    finished, moments = False, 0
    while not finished:
        moments += 1
        calls = 0

        def interrupted(real, at):
            def call(*arguments, **named):
                nonlocal calls
                calls += 1
                if calls == at:
                    raise KeyboardInterrupt
                return real(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted(os.replace, moments))
            patch.setattr(Path, "unlink", interrupted(Path.unlink, moments))
            try:
                command(store.folder)
                finished = True
            except KeyboardInterrupt:
                pass
        assert content_of(store, CELLS) == before, f"interrupted at moment {moments}"
        assert not command(store.folder).problems if (store.folder / FACTS).exists() else True
        assert content_of(store, CELLS) == before
        for name in files_of(store.folder):
            (store.folder / name).unlink()
        for name, content in kept.items():
            (store.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (store.folder / name).write_bytes(content)
    assert moments > 5


def test_nothing_is_removed_if_what_is_read_back_is_not_what_was_packed(store, monkeypatch):
    def another(entries: list[PackedEntry], path: Path) -> None:
        table = pa.table({"doc_id": pa.array([7, 8], pa.int32())})
        write_documents([entry._replace(documents=entry.documents and table) for entry in entries], path)

    before = files_of(store.folder)
    monkeypatch.setattr(packing, "write_documents", another)
    with pytest.raises((RuntimeError, UserError)):
        pack(store.folder)
    assert files_of(store.folder) == before


def test_a_file_that_is_written_while_others_are_packed_stays(store, monkeypatch):
    newer = dataclasses.replace(RESULT, metrics={"acc": 1.0})

    def meanwhile(entries: list[PackedEntry], path: Path) -> None:
        write_documents(entries, path)
        store.put(newer, OUTCOMES)

    monkeypatch.setattr(packing, "write_documents", meanwhile)
    pack(store.folder)
    assert store.path(newer.key).exists()
    assert newer in list(store.results("cell-1"))


def test_packed_files_that_are_cut_short_are_refused_and_not_counted_as_missing(store):
    pack(store.folder)
    for name in (DOCUMENTS, FACTS):
        whole = (store.folder / name).read_bytes()
        for content in (b"", whole[:-9], None):
            (store.folder / name).unlink()
            if content is not None:
                (store.folder / name).write_bytes(content)
            elif name == FACTS:
                assert not store.has(RESULT.key)
                continue
            with pytest.raises(UserError, match=rf"{name} cannot be read .* restore it"):
                store.has(RESULT.key)
        (store.folder / name).write_bytes(whole)
    assert store.has(RESULT.key)


def test_a_table_is_not_drawn_from_results_whose_packed_documents_are_gone(made):
    pack(made.setup.paths.results)
    (made.setup.paths.results / DOCUMENTS).unlink()
    with pytest.raises(UserError, match=r"documents.parquet cannot be read .* restore it"):
        numbers_of(made)


def test_texts_that_are_damaged_in_the_middle_are_refused(store):
    pack(store.folder)
    whole = (store.folder / FACTS).read_bytes()
    texts = pq.read_metadata(store.folder / FACTS).row_group(0).column(1)
    middle = texts.data_page_offset + texts.total_compressed_size // 2
    (store.folder / FACTS).write_bytes(whole[:middle] + b"damaged" * 9 + whole[middle + 63 :])
    assert store.names("cell-1", "int4")
    with pytest.raises(UserError, match=rf"{FACTS} cannot be read .* restore it"):
        store.has(RESULT.key)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did_and_what_stays(store, capsys):
    (store.folder / "cell-1" / "notes.json").write_text("{}")
    assert main([str(store.folder)]) == 1
    said = capsys.readouterr().out
    assert "stays loose: " in said
    assert "packed: 4 results and 6 other files in" in said
    (store.folder / "cell-1" / "notes.json").unlink()
    assert main([str(store.folder)]) == 0
    assert main([str(store.folder), "--unpack"]) == 0
    assert "unpacked: 4 results and 6 other files" in capsys.readouterr().out


def test_a_folder_without_results_is_refused_and_left_alone(tmp_path, capsys):
    run = tmp_path / "runs" / "cell-1"
    run.mkdir(parents=True)
    (run / "cell.json").write_text("{}")
    (run / "train.jsonl").write_text("{}\n")
    before = files_of(tmp_path)
    assert command(["pack", str(tmp_path / "runs")]) == 2
    assert command(["pack", str(tmp_path / "none")]) == 2
    assert command(["pack", str(tmp_path / "runs"), "--unpack"]) == 2
    said = capsys.readouterr().err
    assert [line.partition(" ")[0] for line in said.splitlines()] == ["error:"] * 3
    assert files_of(tmp_path) == before


def test_what_is_not_packed_is_planned_without_pyarrow(made):
    code = (
        "import sys; from pathlib import Path; from evaluation.results.store import ResultStore; "
        f"store = ResultStore(Path({str(made.setup.paths.results)!r})); "
        f"print(len(store.names({made.cells[3].id!r}, 'int2')), 'pyarrow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.stdout.split()[1] == "False"
    pack(made.setup.paths.results)
    run = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["3", "True"]


# --- damage to packed files ------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.ParquetFile(path).read()), path)


def with_column(table: pa.Table, name: str, first: str | None) -> pa.Table:
    """The table with another first value in a column."""
    values = [first, *table[name].to_pylist()[1:]]
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type))


DAMAGES: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "a path out of the folder": (FACTS, lambda table: with_column(table, "path", "../evil.json"), "its paths are not"),
    "an absolute path": (FACTS, lambda table: with_column(table, "path", "/tmp/evil.json"), "its paths are not"),
    "a path twice": (FACTS, lambda table: pa.concat_tables([table, table.slice(0, 1)]), "its paths are not"),
    "no text": (FACTS, lambda table: with_column(table, "text", None), "has no text"),
    "documents in another order": (DOCUMENTS, lambda table: table.sort_by("doc_id:int32"), "do not lie together"),
    "documents of another packing": (DOCUMENTS, lambda table: table.slice(1), "are not of one packing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("work", [pack, unpack])
def test_packed_files_that_are_not_of_this_folder_are_refused_and_nothing_is_changed(store, damage, work):
    file, change, message = DAMAGES[damage]
    pack(store.folder)
    rewritten(store.folder / file, change)
    (store.folder / "cell-3").mkdir()
    (store.folder / "cell-3" / "cell.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in store.folder.glob("*.parquet")}
    with pytest.raises(UserError, match=message):
        work(store.folder)
    assert {path.name: path.read_bytes() for path in store.folder.glob("*.parquet")} == before
    assert not (store.folder.parent / "evil.json").exists()


def test_a_bit_that_turned_over_is_refused_or_changes_nothing(tmp_path):
    whole = PROJECT / "studies" / "demo" / "results"
    facts, told = Facts(whole / FACTS), DocumentRows(whole / DOCUMENTS)
    columns = {name: found for name in facts if (found := facts.columns(name)) is not None}
    content = (whole / DOCUMENTS).read_bytes()
    refused = 0
    for place in range(0, len(content), 97):
        damaged = tmp_path / str(place)
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            rows = DocumentRows(damaged)
            assert all(same_bits(rows.of(name, found), told.of(name, found)) for name, found in columns.items())
        except UserError:
            refused += 1
    assert refused > 40
