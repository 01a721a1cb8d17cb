"""Identity: what a cell is decides its id, and old ids keep their meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from analysis.frame.names import BASE_NAMES
from analysis.tables.papers import SCOPES
from matquant.codes.quantizers import DTYPES
from matquant.config.cell import BaseSpec, Cell, DType, Scope
from matquant.config.setup import Readout
from matquant.runs.status import Reason
from slurm.estimate import BYTES
from slurm.states.reasons import RULES
from tests.golden import renew

GOLDEN = Path(__file__).parents[1] / "golden"


def test_no_default_has_changed_its_value():
    # If this fails: an id that is on somebody's disk would mean something else.  Give the new behaviour a new field.
    assert renew.spec_defaults() == json.loads((GOLDEN / "spec_defaults.json").read_text())


def test_known_cells_keep_their_ids():
    assert renew.cell_ids() == json.loads((GOLDEN / "cell_ids.json").read_text())


@pytest.mark.parametrize(
    "change", ["seed=1", "base.num_steps=3", "grid.symmetric=true", "weights=gemma2", "model.seed=1"]
)
def test_every_fact_of_a_checkpoint_is_in_the_id(tiny_study, change):
    assert tiny_study("base=omniquant").cells[0].id != tiny_study("base=omniquant", change).cells[0].id


@pytest.mark.parametrize("change", ["readout.limit=3", "device=auto", "tracking=wandb", "paths.out=elsewhere"])
def test_nothing_else_is_in_the_id(tiny_study, change):
    assert tiny_study("base=omniquant").cells[0].id == tiny_study("base=omniquant", change).cells[0].id


@pytest.mark.parametrize("bits", ["int2", "matquant"])
def test_what_an_algorithm_does_not_look_at_does_not_make_another_cell(tiny_study, bits):
    assert tiny_study("base=none", f"bits={bits}", "seed=3").cells == tiny_study("base=none").cells


def test_round_to_nearest_of_a_nested_parent_is_the_int8_parent(tiny_study):
    assert tiny_study("base=minmax", "bits=matquant").cells == tiny_study("base=minmax", "bits=int8", "seed=1").cells


def test_a_cell_survives_json(tiny_study):
    cell = tiny_study("base=omniquant", "weights=gemma2").cells[0]
    again = Cell.model_validate(json.loads(json.dumps(cell.model_dump(mode="json"))))
    assert again == cell
    assert again.id == cell.id


def test_a_cell_cannot_be_changed(tiny_study):
    with pytest.raises(ValidationError):
        tiny_study().cells[0].seed = 1


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        (["base=none"], ["full"]),
        (["base=minmax", "bits=int8"], ["int8", "int6", "int4", "int3", "int2"]),
        (["base=omniquant", "bits=int2"], ["int2"]),
        (["base=omniquant", "bits=int6"], ["int6"]),
        (["base=omniquant", "bits=matquant"], ["int8", "int6", "int4", "int3", "int2"]),
        (["base=omniquant", "bits=matquant", "extra_bit=on"], ["int8", "int6+ep", "int4+ep", "int3+ep", "int2+ep"]),
        (["base=omniquant", "bits=single_precision"], ["int8", "int6", "int4", "int3", "int2"]),
        (["base=omniquant", "bits=int4", "readout.sliced_parents=[4]"], ["int4", "int3", "int2"]),
    ],
)
def test_a_cell_is_read_at_the_plans_its_parent_contains(tiny_study, overrides, labels):
    study = tiny_study(*overrides, "readout.plans=[int8,int6,int4,int3,int2]")
    assert [str(plan) for plan in study.setup.readout.plans_of(study.cells[0])] == labels


def test_a_folder_of_documents_is_named_when_it_is_used():
    with pytest.raises(ValidationError, match=r"readout\.data_dir and readout\.source=folder go together"):
        Readout(plans=("int8",), tasks=("piqa",), batch_size=1, source="folder")


@pytest.mark.parametrize(
    ("table", "members"),
    [
        (DTYPES, get_args(DType)),
        (BYTES, get_args(DType)),
        (SCOPES, get_args(Scope)),
        (RULES, get_args(Reason)),
        (
            {"none", *BASE_NAMES},
            [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(BaseSpec)[0])],
        ),
    ],
    ids=["DTYPES", "BYTES", "SCOPES", "RULES", "BASE_NAMES"],
)
def test_a_table_over_a_closed_set_has_all_of_it(table, members):
    assert set(table) == set(members)
