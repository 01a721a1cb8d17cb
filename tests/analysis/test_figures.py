"""Every figure draws what was measured, survives gaps, fits its column, and is the same file for the same numbers."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import published
from analysis.figures.curves import curves_figure, read_log, terms_of
from analysis.figures.every_width import of_one_checkpoint, points, printed_points, widths_figure
from analysis.figures.gallery import plots
from analysis.figures.histograms import histogram_figure
from analysis.figures.mixed_widths import mixnmatch_figure
from analysis.figures.pareto import FAINT, SIZES, pareto_figure, sizes
from analysis.figures.plans import grid_of, plan_figure
from analysis.figures.scales import bits_axis
from analysis.figures.style import COLUMN, METHODS, TEXT, new_figure, save_figure
from analysis.frame.code_counts import Codes, bucket_shares, codes_of, load_codes, num_parameters
from analysis.frame.load import load_frame
from analysis.frame.summary import summary
from evaluation.results.store import ResultStore
from matquant.codes.slicing import slice_codes
from matquant.config.cell import GPTQBase, MinMaxBase
from matquant.notation import Plan, Slice
from tests.made_results import MATQUANT, measure, paper_cells, quantized, study, unquantized

LAYERS = [f"model.layers.{block}.mlp.{kind}_proj" for block in range(6) for kind in ("gate", "up", "down")]
CODES = Codes(np.arange(1.0, 257.0), dict.fromkeys(LAYERS, 10))
MIXED = [f"{layout}@{bits}" for layout in ("pyramid", "reverse_pyramid", "increasing", "decreasing") for bits in (3, 4)]
SEARCHED = ["dynamic_program@3", "dynamic_program_linear@3", "evolution@3", "evolution_linear@4"]


@pytest.fixture
def made(tmp_path):
    made = study(tmp_path, paper_cells(), plans=("int8", "int6", "int4", "int3", "int2", *MIXED, *SEARCHED))
    measure(made)
    return made


def rows_of(made):
    return summary(load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results)))


def load_of(made):
    return load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results))


def log_of(blocks: int = 3, terms=("int8", "int2", "8->2")) -> pd.DataFrame:
    steps = itertools.product(range(blocks), range(4))
    return pd.DataFrame([{"block": b, "step": s, **dict.fromkeys(terms, 1.0 / (s + 1))} for b, s in steps])


def figures(rows, width=TEXT):
    return {
        "pareto": pareto_figure(rows, ["arc_easy", "boolq"], width=width),
        "mixnmatch": mixnmatch_figure(rows, width=width),
        "histogram": histogram_figure({"a model": {"Baseline": CODES, "MatQuant": CODES}}, width=width),
        "curves": curves_figure({"MatQuant": log_of()}, width=width),
        "plan": plan_figure({"pyramid@4": Plan.parse("pyramid@4")}, LAYERS, width=width),
        "widths": widths_figure(rows),
    }


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_the_same_numbers_give_the_same_file(made, tmp_path, form):
    for name in ("one", "two"):
        for figure_name, figure in figures(rows_of(made)).items():
            save_figure(figure, tmp_path / f"{figure_name}-{name}", form)
    for figure_name in figures(rows_of(made)):
        one, two = ((tmp_path / f"{figure_name}-{name}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert len(one) > 1000


@pytest.mark.parametrize("width", [COLUMN, TEXT])
def test_nothing_is_cut_off_and_type_keeps_its_size(made, width):
    for name, figure in figures(rows_of(made), width).items():
        figure.draw_without_rendering()
        inches = figure.get_tightbbox()
        expected = COLUMN if name == "widths" else width
        assert figure.get_figwidth() == expected
        assert inches.x0 > -0.03, name
        assert inches.x1 < expected + 0.03, name
        for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and artist.get_text()):
            assert text.get_fontsize() >= 5.5, name


def test_gaps_are_drawn_as_words(tmp_path):
    for cells in ((), paper_cells()[:1], paper_cells()):
        for name, figure in figures(rows_of(study(tmp_path, cells))).items():
            save_figure(figure, tmp_path / f"{name}.svg", "svg")
    for name, figure in {
        "no codes": histogram_figure({}),
        "no log": curves_figure({"a cell": read_log("")}),
        "no cells": curves_figure({}),
        "no layers": plan_figure({"pyramid@4": Plan.parse("pyramid@4")}, []),
    }.items():
        save_figure(figure, tmp_path / f"{name}.svg", "svg")
        assert any(text.get_text().startswith("no ") for axes in figure.axes for text in axes.texts)


# --- Pareto: what the axis shows --------------------------------------------------------------------------------------


def test_the_axis_shows_the_papers_bits_or_what_is_stored(made):
    rows = rows_of(made)
    row = rows.set_index(["method", "plan"]).loc[("MatQuant", "int2")]
    place = rows.index[(rows["method"] == "MatQuant") & (rows["plan"] == "int2")][0]
    assert sizes(rows, "effective")[place] == 2
    assert sizes(rows, "with_grid")[place] == 2 + row["grid_bits"]
    assert sizes(rows, "disk", {"tiny": 8e6})[place] == pytest.approx(row["model_bits"])
    assert sizes(rows, "disk").isna().all()

    for size, label in SIZES.items():
        figure = pareto_figure(rows, [], size=size, num_parameters={"tiny": 8e6})
        assert {axes.get_xlabel() for axes in figure.axes} == {label}


def test_dominated_points_are_faint_and_those_of_the_front_are_not(made):
    rows = rows_of(made).query("method == 'Baseline' or method == 'MatQuant'").reset_index(drop=True)
    rows["task_avg"] = [0.9 if method == "Baseline" else 0.1 for method in rows["method"]]
    axes = pareto_figure(rows, []).axes[0]
    drawn = [line for line in axes.lines if line.get_marker() == METHODS["MatQuant"].marker]
    assert {line.get_alpha() for line in drawn if len(np.atleast_1d(line.get_xdata()))} == {FAINT}
    drawn = [line for line in axes.lines if line.get_marker() == METHODS["Baseline"].marker]
    assert 1.0 in {line.get_alpha() for line in drawn if len(np.atleast_1d(line.get_xdata()))}


# --- Figure 1b --------------------------------------------------------------------------------------------------------


def test_sliced_int8_begins_at_the_int8_baseline(made):
    found = points(rows_of(made), "omniquant", "task_avg")
    sliced = found[found["line"] == "Sliced int8"]
    assert sorted(sliced["bits"]) == [2, 3, 4, 6, 8]
    assert set(found["line"]) == {"full", "Baseline", "Sliced int8", "MatQuant"}
    assert sorted(found.loc[found["interpolated"].astype(bool), "bits"]) == [3, 6]


def test_the_papers_points_are_those_of_its_table_corrected():
    found = printed_points("gemma2_9b", "qat", "log_pplx").set_index(["line", "bits"])["value"]
    assert found["MatQuant", 2] == 2.660
    assert found["Baseline", 4] == 2.324
    assert found["Sliced int8", 8] == found["Baseline", 8] == 2.29
    assert len(found) == 15 + 1
    assert printed_points("tiny", "omniquant", "task_avg").empty


def test_a_model_without_results_is_drawn_from_the_paper_and_says_so(tmp_path):
    made = study(tmp_path, [unquantized(name="gemma2_9b"), quantized(MATQUANT, name="gemma2_9b")])
    axes = widths_figure(rows_of(made)).axes[0]
    assert axes.get_title(loc="left") == "Gemma-2 9B, the paper's numbers"
    heights = [float(y) for line in axes.lines for y in np.atleast_1d(line.get_ydata())]
    assert 63.35 in heights
    measure(made)
    figure = widths_figure(rows_of(made))
    assert figure.axes[0].get_title(loc="left") == "Gemma-2 9B"
    assert "faint: the paper's" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_a_line_breaks_where_a_width_is_missing(tmp_path):
    made = study(tmp_path, [quantized({"int8": 1.0}), quantized({"int2": 1.0}, parent_bits=2)], plans=("int8", "int2"))
    measure(made)
    axes = widths_figure(rows_of(made)).axes[0]
    dashed = next(line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 5)
    assert np.isnan(np.asarray(dashed.get_ydata(), dtype=float)).sum() == 3


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_buckets_are_those_of_the_slice_that_training_and_evaluation_read(bits):
    """Compares with Eq. 8 as the harness computes it, over all 256 codes."""
    to = Slice(bits, extra_precision=bits < 8)
    values = slice_codes(torch.arange(256), to, parent_bits=8).long() >> (8 - bits)
    expected = np.bincount(values.numpy(), weights=CODES.shares, minlength=2**bits + 1)
    np.testing.assert_allclose(bucket_shares(CODES, to), expected)
    assert bucket_shares(CODES, to).sum() == pytest.approx(1)


def test_codes_that_cannot_be_trusted_are_not_drawn(tmp_path):
    folder = tmp_path / "cell"
    folder.mkdir()
    store = ResultStore(tmp_path)
    for text in ("", "[]", "{", '{"histogram": [1]}', '{"histogram": [1, null], "layers": {}}'):
        (folder / "codes.json").write_text(text)
        assert load_codes(store, "cell") is None
    for histogram in ([0, 0], [1, -1], [1, math.nan], [[1, 2], [3, 4]], 7):
        (folder / "codes.json").write_text(json.dumps({"histogram": histogram, "layers": {}}))
        assert load_codes(store, "cell") is None
    (folder / "codes.json").write_text(json.dumps({"histogram": [1, 3], "layers": {"a": {"num_weights": 4}}}))
    codes = codes_of(store, ["cell", "none"])["cell"]
    assert (codes.mean, codes.parent_bits, codes.num_weights) == (0.75, 1, {"a": 4})


def test_the_number_of_parameters_follows_from_what_is_stored():
    quantized_weights, parameters, grid = 180, 1000, 0.5
    stored = (4 + grid) * quantized_weights + 16 * (parameters - quantized_weights)
    row = {"plan": "int4", "bits": 4, "grid_bits": grid, "overflow_bits": 0.0, "model_bits": stored / parameters}
    rows = pd.DataFrame([{"model": "m", "cell_id": "c", **row}])
    assert num_parameters(rows, {"c": CODES}) == {"m": pytest.approx(parameters)}
    assert num_parameters(rows, {}) == {}


def test_checkpoints_that_are_read_mixed_have_panels_of_their_own(tmp_path):
    other = quantized(MATQUANT).model_copy(update={"base": GPTQBase(kind="gptq")})
    cells = (quantized(MATQUANT), other, unquantized())
    made = study(tmp_path, cells, plans=("int8", "int4", "int2", *MIXED))
    measure(made)
    figure = mixnmatch_figure(rows_of(made))
    titles = [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes]
    assert len(titles) == 4
    assert titles[0] == titles[1] != titles[2] == titles[3]
    assert "GPTQ, gemma2 λ" in titles[2]


def seeds_of(tmp_path):
    """Two seeds of MatQuant, whose codes are known."""
    made = study(tmp_path, [unquantized(), *(quantized(MATQUANT, seed=seed) for seed in (0, 1))])
    store = measure(made)
    for cell in made.cells[1:]:
        facts = {"histogram": [1] * 256, "layers": {"a": {"num_weights": 256}}}
        (store.folder / cell.id / "codes.json").write_text(json.dumps(facts))
    return made


def test_a_row_of_several_seeds_has_its_figure_of_codes(tmp_path):
    made = seeds_of(tmp_path)
    (codes,) = [plot for plot in plots(made, load_of(made), rows_of(made)) if plot.name == "codes"]
    assert "Of several seeds: the first." in codes.note
    assert codes.draw(TEXT).axes


def test_a_line_of_figure_1b_goes_through_one_checkpoint_which_is_named(tmp_path):
    weights = {"int8": 1.0, "int4": 1.0, "int2": 1.0}
    made = study(tmp_path, [unquantized(), quantized(MATQUANT), quantized(weights)])
    measure(made)
    rows = rows_of(made)
    found = points(of_one_checkpoint(rows), "omniquant", "log_pplx")
    assert not found.duplicated(["line", "bits"]).any()
    notes = [plot.note for plot in plots(made, load_of(made), rows) if plot.name.startswith("widths")]
    assert notes
    assert all("Of 2 checkpoints this is one: MatQuant" in note for note in notes)


def test_what_was_rounded_to_fewer_bits_is_not_on_the_line_of_sliced_int8(tmp_path):
    rounded = quantized({"int4": 1.0}, parent_bits=4).model_copy(update={"base": MinMaxBase(kind="minmax")})
    sliced = quantized({"int8": 1.0}).model_copy(update={"base": MinMaxBase(kind="minmax")})
    made = study(tmp_path, [rounded, sliced])
    measure(made)
    found = points(rows_of(made), "omniquant", "log_pplx")
    assert not found.duplicated(["line", "bits"]).any()


def test_a_size_axis_without_a_whole_width_has_ticks():
    figure, grid = new_figure(COLUMN, 2.0, 1)
    bits_axis(grid[0, 0], pd.Series([2.5]))
    low, high = grid[0, 0].get_xlim()
    assert any(low <= tick <= high for tick in grid[0, 0].get_xticks())
    figure.clear()


def test_a_study_without_tasks_has_no_empty_panel_for_them(tmp_path):
    made = study(tmp_path, [quantized(MATQUANT), unquantized()], plans=("int8", "int2", *MIXED), tasks=())
    measure(made)
    (plot,) = [plot for plot in plots(made, load_of(made), rows_of(made)) if plot.name == "mixnmatch"]
    (axes,) = plot.draw(TEXT).axes
    assert "log perplexity" in axes.get_title(loc="left")


# --- curves and plans -------------------------------------------------------------------------------------------------


def test_a_log_is_read_up_to_where_it_was_cut_short():
    lines = [{"piece": "a", "block": 0, "step": 0, "int8": 0.5, "8->2": 0.25, "int2+ep": 1.0, "gradient_norm/int2": 9}]
    text = "\n".join(json.dumps(line) for line in [*lines, {"piece": "a", "histogram": [1, 2]}])
    log = read_log(text + '\n{"block": 0, "st')
    assert len(log) == 1
    assert terms_of(log) == ["int8", "8->2", "int2+ep"]


def test_blocks_are_not_joined_and_steps_without_blocks_are():
    by_block = curves_figure({"a": log_of(blocks=3, terms=("int2",))}).axes[0]
    assert len([line for line in by_block.lines if line.get_linestyle() == "-"]) == 3
    by_step = curves_figure({"a": log_of(blocks=1, terms=("int2",)).drop(columns="block")}).axes[0]
    assert by_step.get_xlabel() == "step"


def test_a_plan_is_a_row_for_each_kind_of_layer_and_a_column_for_each_block(tmp_path):
    kinds, bits = grid_of(Plan.parse("increasing@4"), LAYERS)
    assert kinds == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert bits.shape == (3, 6)
    assert (np.diff(bits[0]) >= 0).all()
    searched = tmp_path / "mine.json"
    searched.write_text(
        json.dumps({"layers": {name: f"int{2 + 2 * (place % 2)}" for place, name in enumerate(LAYERS)}})
    )
    figure = plan_figure({"mine": Plan.parse(str(searched))}, LAYERS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["int2", "int4"]
    assert figure.axes[0].get_title(loc="left") == "mine: 3.00 bits a layer"


def test_a_plan_that_nobody_has_searched_for_yet_is_not_drawn(tmp_path):
    made = study(tmp_path, [quantized(MATQUANT)], plans=("int8", "pyramid@4", "evolution@4"))
    store, (cell,) = measure(made), made.cells
    store.put_codes(cell.id, {"histogram": [1.0] * 256, "layers": {name: {"num_weights": 10} for name in LAYERS}})

    def titles() -> list[str]:
        loaded = load_frame(made.cells, made.setup, store)
        (plot,) = [plot for plot in plots(made, loaded, summary(loaded)) if plot.name == "plans"]
        return [axes.get_title(loc="left").partition(":")[0] for axes in plot.draw(TEXT).axes]

    assert titles() == ["pyramid@4"]
    store.put_plan(cell.id, "evolution@4", {"layers": dict.fromkeys(LAYERS, "int4")})
    assert titles() == ["pyramid@4", "evolution@4"]


def test_published_numbers_are_not_changed_by_drawing(tmp_path):
    before = published.load().copy()
    widths_figure(rows_of(study(tmp_path, [unquantized(name="gemma2_9b")])))
    pd.testing.assert_frame_equal(published.load(), before)
