"""The table of the study of grids: rows of one grid, means over seeds and nothing else, and the time of training."""

from __future__ import annotations

import json

import pytest

from analysis.frame.load import load_frame
from evaluation.results.store import ResultStore
from matquant.runs.folder import RunDir
from matquant.training.clock import timed
from studies.grids.measured import Number, blocks, minutes, numbers_of, rows_of, text_of
from tests import made_results
from tests.made_results import MATQUANT, quantized, unquantized


def on_grid(cell, **grid):
    return cell.model_copy(update={"grid": cell.grid.model_copy(update=grid)})


SEEDS = tuple(quantized(MATQUANT, seed=seed) for seed in (0, 1, 2))
CELLS = (
    unquantized(),
    quantized({"int8": 1.0}),
    quantized({"int2": 1.0}, parent_bits=2),
    *SEEDS,
    on_grid(SEEDS[0], headroom="int3"),
    on_grid(SEEDS[0], zero="aligned_int4"),
)


@pytest.fixture
def rows(tmp_path):
    study = made_results.study(tmp_path, CELLS, tasks=())
    store = made_results.measure(study)
    for place, cell in enumerate(CELLS[1:], start=1):
        store.put_training(cell.id, {"seconds": 60.0 * place, "is_done": True})
    loaded = load_frame(study.cells, study.setup, ResultStore(study.setup.paths.results))
    return rows_of(numbers_of(loaded, CELLS, store))


def test_cells_that_differ_in_a_grid_are_rows_of_their_own_and_seeds_are_one(rows):
    nested = {row.grid: columns for row, columns in rows.items() if "MatQuant" in row.method}
    assert set(nested) == {"real zero", "real zero, headroom int3", "zero on int4's step"}
    assert [number.cell.seed for number in nested["real zero"]["int2"]] == [0, 1, 2]
    assert minutes(nested["real zero"]) == "4.0"  # the mean of cells 3, 4 and 5


def test_explicit_baselines_are_one_row_and_the_slices_of_int8_another(rows):
    by_method = {row.method: columns for row, columns in rows.items()}
    assert list(by_method["OmniQuant, Baseline"]) == ["int8", "int2"]
    assert minutes(by_method["OmniQuant, Baseline"]) == "3.0"  # both trainings
    assert list(by_method["OmniQuant, Sliced int8"]) == ["int8", "int4", "int3", "int2"]
    assert minutes(by_method["OmniQuant, Sliced int8"]) == "1.0"


def test_means_are_over_seeds_and_never_over_anything_else():
    numbers = [Number(cell, "int2", nats, None) for cell, nats in zip(SEEDS, (1.0, 2.0, 3.0), strict=True)]
    assert text_of(numbers) == "2.000 ± 1.000 (3)"
    assert text_of(numbers[:1]) == "1.000"
    assert text_of([]) == "–"
    with pytest.raises(AssertionError, match="differ in more than seeds"):
        text_of([numbers[0], Number(on_grid(SEEDS[1], headroom="int2"), "int2", 1.0, None)])


def test_every_number_names_its_cell_and_its_text(rows):
    text = "\n".join(blocks(rows, "tuning"))
    assert "nats per token of tuning text" in text
    assert all(f"`{cell.id}`" in text for cell in CELLS)


def test_the_time_of_a_training_that_was_stopped_goes_on(tmp_path):
    run = RunDir(tmp_path, "cell")

    def recorded() -> dict[str, object]:
        return json.loads(run.training.read_text())

    with pytest.raises(KeyboardInterrupt), timed(run, is_main=True):
        raise KeyboardInterrupt
    run.training.write_text('{"seconds": 100.0, "is_done": false}')
    with timed(run, is_main=True):
        pass
    assert recorded()["is_done"] is True
    assert float(str(recorded()["seconds"])) >= 100.0
    with timed(run, is_main=True):  # a checkpoint that was deleted begins anew
        pass
    assert float(str(recorded()["seconds"])) < 100.0


def test_a_text_that_only_some_rows_read_is_no_setting_and_an_empty_one_never_is(tmp_path):
    read = quantized(MATQUANT, seed=0)
    per_channel = read.model_copy(update={"grid": read.grid.model_copy(update={"group_size": None})})
    unread = per_channel.model_copy(update={"data": None})
    rows = rows_of(Number(cell, "int2", 1.0, None) for cell in (per_channel, unread))
    assert len(rows) == 2  # never averaged, whatever is shown
    shown = [line for line in blocks(rows, "test") if line.startswith(("| 1", "| 2"))]
    assert all("data." not in line and "{}" not in line for line in shown)
