"""Axes that multiply: every grid and every parent goes the whole line, with every algorithm that trains."""

from __future__ import annotations

import pytest

import run
from evaluation.results.store import ResultStore
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.folder import RunDir
from tests.models.test_architectures import BASES

ONLY_PERPLEXITY = ("readout.tasks=[]",)


def plans_read(study, cell) -> set[str]:
    run.run_cell(cell, study.setup)
    results = list(ResultStore(study.setup.paths.results).results(cell.id))
    assert all(5 < result.metrics["log_pplx"] < 6 for result in results)
    return {result.plan for result in results}


@pytest.mark.parametrize("symmetric", ["false", "true"])
@pytest.mark.parametrize("grid", ["per_channel", "group_32", "group_64", "group_128"])
@pytest.mark.parametrize("base", BASES)
def test_every_grid_goes_the_whole_line(tiny_study, base, grid, symmetric):
    wide = ("model.config.hidden_size=128", "model.config.intermediate_size=128", "model.config.num_hidden_layers=1")
    study = tiny_study(*BASES[base], *wide, f"grid={grid}", f"grid.symmetric={symmetric}", *ONLY_PERPLEXITY)
    (cell,) = study.cells
    assert plans_read(study, cell) == {"int8", "int4", "int2"}
    checkpoint = load_checkpoint(RunDir(study.setup.paths.runs, cell.id).checkpoint, cell)
    num_groups = {"per_channel": 1, "group_32": 4, "group_64": 2, "group_128": 1}[grid]
    for nested in checkpoint.layers.values():
        assert nested.grid.scale.shape == (128, num_groups)
        assert (nested.grid.zero == 128).all().item() == (symmetric == "true")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("parent", "widths", "plans"),
    [
        (6, "[int6,int4,int2]", ["int6", "int4", "int2"]),
        (4, "[int4,int2]", ["int4", "int2"]),
        (4, "[int2]", ["int4", "int2"]),
    ],
    ids=str,
)
def test_parents_of_fewer_bits_go_the_whole_line(tiny_study, base, parent, widths, plans):
    bits = (f"bits.parent_bits={parent}", f"bits.widths={widths}", "readout.plans=[int8,int6,int4,int2,pyramid@4]")
    study = tiny_study(*BASES[base], *bits, *ONLY_PERPLEXITY)
    (cell,) = study.cells
    assert plans_read(study, cell) == set(plans)
    checkpoint = load_checkpoint(RunDir(study.setup.paths.runs, cell.id).checkpoint, cell)
    assert all(nested.codes.max() <= 2**parent - 1 for nested in checkpoint.layers.values())
