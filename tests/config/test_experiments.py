"""Every experiment file, with its models, texts and budgets made tiny, runs from training to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import run
from analysis.figures.gallery import Plot, plots
from analysis.figures.style import save_figure
from analysis.frame.load import LoadedResults, load_frame
from analysis.frame.names import flatten
from evaluation.results.store import ResultStore
from matquant.config.cell import Cell
from matquant.config.compose import choices
from matquant.config.setup import SearchSpec, Setup
from matquant.config.study import Study
from tests.tiny import tiny_overrides, tiny_paths

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DRAWING = "analysis.report.building"
"""The module that draws the figures of a report."""
BUDGET = {"num_steps": 1, "batch_size": 2, "micro_batch_size": 1, "warmup_steps": 1}


def made_tiny(study: Study, tiny: Cell, folder: Path) -> Study:
    """The same plans, and cells with every value of the experiment, on the tiny model, one task and two documents."""
    readout = study.setup.readout.model_copy(
        update={"tasks": ("piqa",), "limit": 2, "batch_size": 2, "dtype": "float32", "source": "embedded"}
        | {"search": SearchSpec(num_sequences=2, generations=1, offspring=2)}
        | {"perplexity": tiny.data and tiny.data.model_copy(update={"num_sequences": 2})}
    )
    cells = {cell.id: cell for cell in covering([_tiny_cell(cell, tiny) for cell in study.cells])}
    setup = Setup(
        readout=readout,
        tracking=study.setup.tracking.model_copy(update={"kind": "none"}),
        paths=tiny_paths(folder),
        device="cpu",
        experiment=study.name,
    )
    return Study(study.name, tuple(cells.values()), setup)


def covering(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that bring an algorithm a value, of any key, which no cell before has brought it."""
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for cell in cells:
        values = {(cell.base.kind, key, str(value)) for key, value in flatten(cell.model_dump(mode="json"))}
        kept += [cell] if values - seen else []
        seen |= values
    return kept


def test_of_a_product_of_axes_one_cell_for_each_value_is_kept(tiny_study):
    axes = "base: [omniquant, gptq], bits: [int8, int4], seed: [0, 1, 2]"
    kept = covering(tiny_study(f"cells=[{{{axes}}}]").cells)
    found = [(cell.base.kind, str(cell.objective), cell.seed) for cell in kept]
    assert len(set(found)) == len(kept) == 2 * (1 + 2 + 1), found  # the first; other seeds of it; the other width


def _tiny_cell(cell: Cell, tiny: Cell) -> Cell:
    budget = {name: value for name, value in BUDGET.items() if name in type(cell.base).model_fields}
    changes = {"model": tiny.model, "base": cell.base.model_copy(update=budget)}
    if cell.data is not None:
        changes["data"] = tiny.data
    if cell.grid is not None and cell.grid.group_size is not None:
        changes["grid"] = cell.grid.model_copy(update={"group_size": 32})
    return cell.model_copy(update=changes)


@dataclass
class Drawn:
    """Figures by their numbers and name, and one file of each form and name."""

    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)


@pytest.fixture(scope="session")
def drawn() -> Drawn:
    return Drawn()


@pytest.fixture
def _figures_are_drawn_once(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws figures of the same numbers, which many tiny experiments have, once and at their larger width alone.

    Writing one takes longer than all else of a report: the first of each name is written, and stands for those that
    follow.  What was drawn is kept for the session; what draws is replaced in these tests alone.
    """

    def plots_once(study: Study, loaded: LoadedResults, rows: pd.DataFrame, measures: Sequence[str]) -> list[Plot]:
        same = repr(sorted(cell.id for cell in study.cells)) + rows.to_csv()

        def drawn_once(plot: Plot, width: float) -> Figure:
            place = (same, plot.name)
            return drawn.figures.get(place) or drawn.figures.setdefault(place, plot.draw(width))

        return [
            replace(plot, widths=(max(plot.widths),), draw=partial(drawn_once, plot))
            for plot in plots(study, loaded, rows, measures)
        ]

    def saved_once(figure: Figure, path: Path, form: str) -> None:
        name = next(name for (_, name), one in drawn.figures.items() if one is figure)
        if (name, form) not in drawn.files:
            save_figure(figure, path, form)
            drawn.files[name, form] = path.read_bytes()
        path.write_bytes(drawn.files[name, form])

    monkeypatch.setattr(f"{DRAWING}.plots", plots_once)
    monkeypatch.setattr("analysis.report.written.save_figure", saved_once)
    monkeypatch.setattr("analysis.report.report.FORMS", ("svg",))  # the other forms have tests of their own


@pytest.mark.usefixtures("_figures_are_drawn_once")
@pytest.mark.parametrize("name", choices("experiment"))
def test_a_tiny_version_of_every_experiment_runs_from_training_to_its_report(name, composed, shared_folder):
    folder = shared_folder / "experiments"  # experiments share cells, and each is trained once
    (tiny, *_) = composed(*tiny_overrides(folder)).cells
    study = made_tiny(composed(f"experiment={name}"), tiny, folder)
    run.run_study(study, [f"experiment={name}"])
    loaded = load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))
    assert loaded.missing.empty
    assert not loaded.problems
    assert (folder / "out" / study.name / "report.html").stat().st_size > 10_000
