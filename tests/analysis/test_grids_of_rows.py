"""Every table says what the grids of its rows are, and rows on different grids are nowhere taken for one another."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from analysis.claims.cases import Background, Case, find
from analysis.claims.evidence import ReadOut, cells_of
from analysis.claims.judges import above
from analysis.figures.every_width import of_one_grid
from analysis.figures.gallery import plots
from analysis.frame.opened import OpenStudy
from analysis.frame.pairs import pairs_of
from analysis.page.contents import headlines
from analysis.report.building import numbers_of, text_of
from analysis.report.compare import main as compare
from analysis.report.wandb_report import run_sets
from analysis.tables.beside import side_by_side
from analysis.tables.drawing import to_html, to_latex, to_markdown, to_text
from analysis.tables.papers import by_model, paper_table
from evaluation.protocol import protocols
from evaluation.results.readouts import readout_rows
from matquant.config.cell import Cell, ForeignModel
from matquant.config.grid_words import COVERED, all_words, ends_words, grid_words
from matquant.errors import UserError
from tests.made_results import MATQUANT, measure, quantized, study, unquantized

ALIGNED = {"group_size": 64, "zero": "aligned_int4", "headroom": "int3"}
WORDS = "groups of 64, zero on int4's step, headroom int3"


def on(grid: dict[str, Any], cell: Cell, **base: Any) -> Cell:
    facts = cell.model_dump(mode="json", exclude_defaults=True)
    return Cell.model_validate({**facts, "grid": grid, "base": {**facts["base"], **base}})


def made_of(tmp_path, *cells: Cell, **readout: Any):
    made = study(tmp_path, [unquantized(), *cells], **readout)
    store = measure(made)
    for cell in made.cells:
        store.put_cell(cell.id, cell.model_dump(mode="json"))
    return made, store


# --- words -----------------------------------------------------------------------------------------------------------

BASE = {
    "search": {"kind": "search"},
    "gptq": {"kind": "gptq"},
    "qat": {"kind": "qat", "num_steps": 2, "batch_size": 2, "lr": 0.1, "warmup_steps": 0},
}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "per channel, real zero"),
        ({"group_size": 64}, "groups of 64, real zero"),
        ({"zero": "rounded"}, "per channel, rounded zero"),
        ({"symmetric": True, "headroom": "int2"}, "per channel, symmetric, headroom int2"),
        ({"scale_dtype": "float16"}, "per channel, real zero, float16 scales"),
        (ALIGNED, WORDS),
    ],
)
def test_a_grid_is_called_by_what_it_is(grid, words):
    assert grid_words(on(grid, quantized(MATQUANT))) == words


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({}, ""),
        ({"clipping_init": "search"}, "searched start"),
        (
            {"clipping_init": "search", "importance": "inputs", "clipping_reach": 1.5},
            "searched start by inputs, reach 1.5",
        ),
        ({"clipping_init": 2.0}, "start 2"),
        ({"schedule": "cosine"}, ""),
        (BASE["search"], "searched ends, reach 1.5"),
        ({**BASE["search"], "importance": "inputs", "clipping_reach": 2}, "searched ends by inputs, reach 2"),
        (BASE["gptq"], ""),
        ({**BASE["gptq"], "clipping": "search"}, "searched range by inputs, reach 1.5"),
        ({**BASE["gptq"], "clipping": "search", "importance": "plain"}, "searched range, reach 1.5"),
        (BASE["qat"], ""),
        ({**BASE["qat"], "clipping_init": "search"}, "searched ends, reach 1"),
        ({**BASE["qat"], "train_scales": True, "clipping_reach": 1.5}, "trained ends, reach 1.5"),
    ],
)
def test_ends_are_called_by_how_they_were_chosen(base, words):
    cell = quantized(MATQUANT)
    facts = cell.model_dump(mode="json", exclude_defaults=True)
    base = base if "kind" in base else {**facts["base"], **base}
    assert ends_words(Cell.model_validate({**facts, "base": base})) == words


def test_words_tell_every_two_grids_apart():
    sizes, zeros = (None, 32, 64), ("real", "rounded", "aligned_int4", "aligned_int3", "aligned_int2")
    headrooms, reaches, starts = ("full", "int4", "int3", "int2"), (1.0, 1.25, 1.5), (4.0, 2.0, "search")
    cell = quantized(MATQUANT)
    cells = [
        on({"group_size": size, "zero": zero, "headroom": headroom}, cell, clipping_reach=reach, clipping_init=start)
        for size, zero, headroom, reach, start in itertools.product(sizes, zeros, headrooms, reaches, starts)
    ]
    assert len({all_words(cell) for cell in cells}) == len(cells)


def test_an_unquantized_cell_has_no_grid():
    assert all_words(unquantized()) == ""


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """MatQuant and an int2 Baseline, each on two grids, with other ends, and with another schedule."""
    nested, explicit = quantized(MATQUANT), quantized({"int2": 1.0}, parent_bits=2)
    cells = [
        *(on(grid, cell) for grid in ({"group_size": 64}, ALIGNED) for cell in (explicit, nested)),
        on(ALIGNED, nested, clipping_reach=1.5, clipping_init="search"),
        on(ALIGNED, nested, clipping_reach=1.5, clipping_init="search", importance="inputs"),
        on(ALIGNED, nested, schedule="cosine"),
    ]
    return made_of(tmp_path, *cells)[0]


def test_rows_that_differ_in_their_grid_alone_are_apart_and_called_by_it(mixed):
    rows = numbers_of(mixed).rows
    at_int2 = rows[(rows["plan"] == "int2") & (rows["method"] == "MatQuant")]
    assert list(at_int2["label"]) == [
        "MatQuant (OmniQuant), base.schedule=constant, groups of 64, real zero",
        f"MatQuant (OmniQuant), base.schedule=constant, {WORDS}",
        f"MatQuant (OmniQuant), base.schedule=constant, {WORDS}, searched start, reach 1.5",
        f"MatQuant (OmniQuant), base.schedule=constant, {WORDS}, searched start by inputs, reach 1.5",
        f"MatQuant (OmniQuant), base.schedule=cosine, {WORDS}",
    ]
    assert (at_int2["num_seeds"] == 1).all()
    assert rows.drop_duplicates(["config_id"])["label"].nunique() == len(mixed.cells)


def test_seeds_of_one_grid_are_one_row_and_those_of_another_are_not_among_them(tmp_path):
    cells = [on(grid, quantized(MATQUANT, seed=seed)) for grid in ({}, ALIGNED) for seed in (0, 1)]
    rows = numbers_of(made_of(tmp_path, *cells)[0]).rows
    at_int2 = rows[rows["plan"] == "int2"]
    assert list(at_int2["num_seeds"]) == [2, 2]
    assert list(at_int2["grid"]) == ["per channel, real zero", WORDS]


@pytest.mark.parametrize("change", [{"grid.zero": "rounded"}, {"grid.headroom": "int4"}, {"grid.group_size": 32}])
def test_every_table_has_the_grid_in_a_column_where_rows_differ(tmp_path, change):
    ((key, value),) = change.items()
    nested = on({"group_size": 64}, quantized(MATQUANT))
    made, _ = made_of(tmp_path, nested, on({"group_size": 64, key.removeprefix("grid."): value}, nested))
    numbers = numbers_of(made)
    table = numbers.table
    place = table.heads.index("Grid")
    of_rows = [[row[place].text for row in section.rows] for section in table.sections]
    words = [grid_words(cell) for cell in made.cells[1:]]
    assert of_rows == [[""], words, words, words, words]
    assert all(row[1].text.startswith("MatQuant (OmniQuant)") for section in table.sections[1:] for row in section.rows)
    assert not any("Grid of all" in note for note in table.notes)
    for text in (to_markdown(table), to_html(table), to_latex(table)):
        assert all(word in text for word in words)
    assert all(word in " ".join(to_text(table).split()) for word in ("real zero", words[1].split(", ")[-1]))
    assert {"grid", "ends"} <= set(numbers.rows.columns)


def test_a_table_of_one_grid_says_it_once(tmp_path):
    made, _ = made_of(tmp_path, on(ALIGNED, quantized(MATQUANT)), on(ALIGNED, quantized({"int8": 1.0})))
    numbers = numbers_of(made)
    assert "Grid" not in numbers.table.heads
    assert f"Grid of all quantized rows: {WORDS}." in numbers.table.notes
    assert f"Grid of all quantized rows: {WORDS}." in text_of(numbers)
    assert all(plot.note.endswith(f"{WORDS}.") for plot in plots(made, numbers.loaded, numbers.rows))


def test_what_rows_share_of_their_grid_is_said_once_and_the_rest_at_each(tmp_path):
    nested = on(ALIGNED, quantized(MATQUANT))
    made, _ = made_of(tmp_path, nested, on(ALIGNED, nested, clipping_reach=1.5))
    table = numbers_of(made).table
    assert f"Grid of all quantized rows: {WORDS}." in table.notes
    place = table.heads.index("Grid")
    assert [row[place].text for row in table.sections[1].rows] == ["plain ends", "reach 1.5"]


def test_headlines_and_run_sets_name_the_grid(mixed):
    rows = numbers_of(mixed).rows
    sentences = [sentence for of_model in headlines(rows) for sentence in of_model]
    assert "groups of 64, real zero" in sentences[0]
    assert all("zero" in sentence for sentence in sentences if not sentence.startswith("Unquantized"))
    assert len(run_sets(rows)) == len(mixed.cells)


def test_headlines_are_those_of_the_overflow_bucket_where_nothing_else_was_read(tmp_path):
    made, _ = made_of(tmp_path, quantized({"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0}))
    rows = numbers_of(made).rows
    [[sentence]] = headlines(rows[rows["extra_precision"].astype(bool)])
    assert sentence.startswith("int2+ep read out of MatQuant + Extra Precision")


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_a_row_is_held_against_the_baseline_of_its_own_grid(mixed):
    comparisons = numbers_of(mixed).comparisons
    at_int2 = comparisons[comparisons["plan"] == "int2"]
    assert set(at_int2["grid"].str.startswith(WORDS)) == {True, False}
    for row in at_int2.to_dict("records"):
        assert row["grid"].startswith(row["reference_grid"])


def test_a_row_without_a_baseline_of_its_grid_names_the_other_grid(tmp_path):
    made, _ = made_of(tmp_path, quantized({"int2": 1.0}, parent_bits=2), on(ALIGNED, quantized(MATQUANT)))
    text = " ".join(to_markdown(numbers_of(made).table).split())
    assert "against a row on another grid: per channel, real zero" in text
    assert "MatQuant (OmniQuant) \\[1\\]" in text


def test_a_sliced_parent_of_the_same_grid_comes_before_a_baseline_of_another(tmp_path):
    sliced, other = on(ALIGNED, quantized({"int8": 1.0})), quantized({"int2": 1.0}, parent_bits=2)
    made, _ = made_of(tmp_path, other, sliced, on(ALIGNED, quantized(MATQUANT)))
    numbers = numbers_of(made)
    nested = numbers.comparisons["row"].str.startswith("MatQuant") & (numbers.comparisons["plan"] == "int2")
    assert set(numbers.comparisons.loc[nested, "reference"]) == {f"Sliced int8 (OmniQuant), {WORDS}"}


def test_two_read_outs_are_compared_with_their_grids_named(tmp_path, capsys):
    one, other = quantized(MATQUANT), on(ALIGNED, quantized(MATQUANT), clipping_reach=1.5)
    _, store = made_of(tmp_path, one, other)
    compare([f"{one.id}:int2", f"{other.id}:int2", "--results", str(store.folder)])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"grids differ: per channel, real zero (first); {WORDS}, reach 1.5 (second)"
    compare([f"{one.id}:int2", f"{one.id}:int8", "--results", str(store.folder)])
    assert capsys.readouterr().out.startswith("grid: per channel, real zero\n")


def test_rows_of_two_studies_are_compared_with_their_grids_named(tmp_path):
    ours, _ = made_of(tmp_path / "ours", on(ALIGNED, quantized(MATQUANT)))
    theirs, _ = made_of(tmp_path / "theirs", quantized({"int2": 1.0}, parent_bits=2))
    found = pairs_of(OpenStudy(ours), OpenStudy(theirs), first="MatQuant", second="Baseline")
    assert set(found["first"]) == {f"MatQuant (OmniQuant), {WORDS}"}
    assert set(found["second"]) == {"Baseline (OmniQuant), per channel, real zero"}


def test_a_claim_across_grids_says_so_and_one_that_fits_several_is_refused(mixed, tmp_path):
    opened = OpenStudy(mixed)
    facts = {"grid": "groups of 64, real zero"}
    ours, rival = (ReadOut("omniquant", method, "int2", facts) for method in ("MatQuant", "Baseline"))
    found = [
        find(
            Case("", ("made",), above, ours, (replace(rival, facts=of),)),
            {"made": opened},
            Background({}),
        )
        for of in (facts, {"grid": WORDS})
    ]
    assert "; on " not in found[0].measured
    assert found[1].measured.endswith(f"; on groups of 64, real zero, against {WORDS}")
    with pytest.raises(UserError, match=r"fits several configurations.*searched start by inputs"):
        cells_of(opened, ReadOut("omniquant", "MatQuant", "int2"))


# --- the paper's tables, figures and trackers ------------------------------------------------------------------------


def test_ours_beside_the_papers_say_their_grid(mixed, tmp_path):
    rows = numbers_of(mixed).rows
    for table in (paper_table(1, rows), by_model(1, side_by_side(1, rows))):
        notes = " ".join(table.notes)
        assert "the first of several grids: groups of 64, real zero; not shown: " in notes
        assert "searched start by inputs, reach 1.5" in notes
    one, _ = made_of(tmp_path / "one", on(ALIGNED, quantized(MATQUANT)))
    rows = numbers_of(one).rows
    for table in (paper_table(1, rows), by_model(1, side_by_side(1, rows))):
        assert f"Grid of ours: {WORDS}." in table.notes
    two, _ = made_of(
        tmp_path / "two", on(ALIGNED, quantized(MATQUANT)), on({}, quantized({"int2": 1.0}, parent_bits=2))
    )
    rows = numbers_of(two).rows
    notes = paper_table(1, rows).notes
    assert {f"[1] grid of ours: {WORDS}.", "[2] grid of ours: per channel, real zero."} == set(notes[-2:])


def test_a_line_of_figure_1b_is_of_one_grid(mixed):
    numbers = numbers_of(mixed)
    rows = of_one_grid(numbers.rows)
    assert set(rows.loc[rows["base"] != "none", "grid"]) == {"groups of 64, real zero"}
    (note,) = {plot.note for plot in plots(mixed, numbers.loaded, numbers.rows) if plot.name == "widths"}
    assert "Of several grids this is one: groups of 64, real zero." in note


def test_a_trackers_rows_have_their_grid(tmp_path):
    cell = on(ALIGNED, quantized(MATQUANT), clipping_reach=1.5)
    made, store = made_of(tmp_path, cell)
    rows = readout_rows(store, cell.id, protocols(made.setup.readout, add_bos=False))
    assert {row["grid"] for row in rows} == {f"{WORDS}, reach 1.5"}


def test_untrained_search_is_a_row_beside_minmax(tmp_path):
    plain = quantized({"int8": 1.0}).model_dump(mode="json", exclude_defaults=True)
    cells = [Cell.model_validate({**plain, "base": {"kind": kind}}) for kind in ("minmax", "search")]
    made, _ = made_of(tmp_path, *cells)
    numbers = numbers_of(made)
    at_int2 = numbers.rows[numbers.rows["plan"] == "int2"]
    assert list(at_int2["base"]) == ["minmax", "search"]
    assert at_int2["label"].nunique() == 2
    place = numbers.table.heads.index("Grid")
    assert [row[place].text for row in numbers.table.sections[-1].rows] == ["plain ends", "searched ends, reach 1.5"]


def test_every_setting_that_the_words_cover_exists():
    fields = {f"base.{name}" for base in (*BASE, "omniquant") for name in _fields(base)} | {
        f"grid.{name}" for name in on({}, quantized(MATQUANT)).model_dump()["grid"]
    }
    fields |= {f"model.{name}" for name in ForeignModel.model_fields}
    assert set(COVERED) <= fields


def _fields(base: str) -> list[str]:
    facts = quantized(MATQUANT).model_dump(mode="json", exclude_defaults=True)
    spec = BASE.get(base, facts["base"])
    return list(type(Cell.model_validate({**facts, "base": spec}).base).model_fields)
