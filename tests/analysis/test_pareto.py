"""The front is what its definition says, and the figure survives every table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.figures.pareto import (
    chance_in_view,
    method_styles,
    non_dominated,
    pareto_figure,
    sizes,
)
from analysis.figures.scales import readable_ticks
from analysis.figures.style import save_figure
from analysis.frame.load import load_frame
from analysis.frame.summary import CHANCE, summary
from evaluation.results.store import ResultStore
from reference import pareto_reference
from tests.made_results import MATQUANT, measure, paper_cells, quantized, study, unquantized

if TYPE_CHECKING:
    from matquant.config.study import Study

# Few distinct values, so that equal bits, equal qualities and equal points occur all the time.
points = st.lists(
    st.tuples(st.sampled_from([2.0, 2.05, 3.0, 8.0, math.nan]), st.sampled_from([0.0, 0.5, 1.0, math.nan]))
)
any_points = st.lists(st.tuples(st.floats(), st.floats()))


def test_a_list_of_overflow_weights_is_counted_once_whatever_the_widths_of_the_layers():
    share = 0.6  # of the parameters that is quantized

    def row(cell_id: str, plan: str, bits: float, width: float, overflow: float) -> dict[str, object]:
        stored = width + 0.5 + 6 * overflow
        return {
            "cell_id": cell_id,
            "plan": plan,
            "bits": bits,
            "effective_bits": width + overflow,
            "grid_bits": 0.5,
            "overflow_bits": 6 * overflow,
            "model_bits": share * stored + (1 - share) * 16,
            "stored": stored,
        }

    rows = pd.DataFrame(
        [
            row("none", "full", 16, 15.5, 0),
            row("mixed", "int4", 4, 4, 0),
            row("mixed", "int2+ep", 2, 2, 0.05),
            row("mixed", "pyramid@3+ep", 3, 3.02, 0.04),
            row("mixed", "my_widths", 2.9, 2.8, 0.04),  # a plan file that keeps the bucket
            row("alone", "pyramid@3+ep", 3, 3, 0.04),
        ]
    )
    assert sizes(rows, "with_grid").tolist() == pytest.approx(rows["stored"].tolist())
    assert math.isnan(sizes(rows.assign(overflow_bits=math.nan, grid_bits=math.nan), "with_grid").iloc[1])


@given(points | any_points)
def test_the_front_is_the_one_of_the_definition(points):
    bits, quality = [point[0] for point in points], [point[1] for point in points]
    assert non_dominated(bits, quality).tolist() == pareto_reference.non_dominated(bits, quality)


@given(points, st.randoms())
def test_the_order_of_points_does_not_matter(points, random):
    shuffled = random.sample(range(len(points)), len(points))
    front = non_dominated([point[0] for point in points], [point[1] for point in points])
    again = non_dominated([points[i][0] for i in shuffled], [points[i][1] for i in shuffled])
    assert front[shuffled].tolist() == again.tolist()


def rows_of(made: Study):
    return summary(load_frame(made.cells, made.setup, ResultStore(made.setup.paths.results)))


@pytest.fixture
def made(tmp_path) -> Study:
    made = study(tmp_path, paper_cells())
    measure(made)
    return made


def test_the_figure_has_a_panel_for_each_quantity_and_a_row_for_each_model(tmp_path):
    cells = [unquantized(), quantized(MATQUANT), unquantized(name="other"), quantized(MATQUANT, name="other")]
    made = study(tmp_path, cells)
    measure(made)
    assert len(pareto_figure(rows_of(made), made.setup.readout.tasks).axes) == 4


def test_interpolated_points_are_hollow_and_trained_ones_are_not(made):
    rows = rows_of(made)
    colour = method_styles(rows)["MatQuant (OmniQuant)"].colour
    axes = pareto_figure(rows, made.setup.readout.tasks).axes[0]
    drawn = [line for line in axes.lines if line.get_markeredgecolor() == colour and line.get_linestyle() == "None"]
    faces = {bits: line.get_markerfacecolor() == colour for line in drawn for bits in np.asarray(line.get_xdata())}
    assert faces == {8: True, 4: True, 3: False, 2: True}


def test_the_unquantized_model_is_a_line_and_stretches_no_axis(made):
    axes = pareto_figure(rows_of(made), made.setup.readout.tasks).axes[0]
    assert axes.get_xlim()[1] < 10
    assert any(np.allclose(line.get_ydata(), 66.0) for line in axes.lines)


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_the_same_results_give_the_same_file(made, tmp_path, form):
    for name in ("one", "two"):
        save_figure(pareto_figure(rows_of(made), made.setup.readout.tasks), tmp_path / name, form)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").stat().st_size > 1000


@pytest.mark.parametrize("cells", [(), paper_cells()[:1], paper_cells()])
def test_an_empty_results_folder_still_draws(tmp_path, cells):
    made = study(tmp_path, cells)
    save_figure(pareto_figure(rows_of(made), made.setup.readout.tasks), tmp_path / "figure.svg", "svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_every_label_has_a_look_of_its_own(tmp_path):
    weights = [0.1 * step for step in range(1, 12)]
    rows = rows_of(study(tmp_path, [*paper_cells(), *(quantized({**MATQUANT, "int8": weight}) for weight in weights)]))
    styles = method_styles(rows)
    assert len(styles) > 10
    assert len(set(styles.values())) == len(styles)


def test_chance_is_drawn_only_where_it_is_known_and_near(made):
    rows = rows_of(made)
    assert sum(CHANCE.values()) / len(CHANCE) == pytest.approx(0.375)
    assert chance_in_view(rows.assign(task_avg=[0.40] * 9 + [0.50]), list(CHANCE)) == pytest.approx(0.375)
    assert chance_in_view(rows.assign(task_avg=0.9), list(CHANCE)) is None
    assert chance_in_view(rows, ["a task of unknown chance"]) is None


def test_ticks_of_a_logarithmic_axis_are_round_and_apart():

    ticks = readable_ticks(3.4, 17.0)
    assert len(ticks) >= 6
    assert all(3.4 <= tick <= 17.0 for tick in ticks)
    assert min(np.diff(np.log(ticks))) > 0.07 * np.log(17.0 / 3.4)


def test_values_that_hardly_differ_still_have_ticks(made):
    rows = rows_of(made).assign(log_pplx=np.linspace(5.533, 5.535, 10))
    axes = pareto_figure(rows, made.setup.readout.tasks).axes[1]
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2
