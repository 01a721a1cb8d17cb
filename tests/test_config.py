"""Configuration: every file composes, and every mistake is one sentence that names the value and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from matquant.config.compose import CONF, choices, compose, compose_points, sweep_points
from matquant.config.study import load_study
from matquant.errors import UserError
from tests.golden import renew

NEEDS = {
    ("model", "hub"): ["model.repo=a/b", "model.name=b"],
    ("model", "folder"): ["model.path=.", "model.name=x"],
    ("data", "text_files"): ["data.paths=[a.txt]"],
    ("perplexity", "text_files"): ["readout.perplexity.paths=[a.txt]"],
}
FILES = sorted(path for path in CONF.glob("*/**/*.yaml") if path.relative_to(CONF).parts[0] != "hydra")


def choice(path: Path) -> tuple[str, str]:
    """The axis of a file and how its choice is typed: ("experiment", "smollm2/table01")."""
    group, *name = path.relative_to(CONF).with_suffix("").parts
    return group, "/".join(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(choice(path)))
def test_every_config_file_composes_and_validates(path: Path, composed):
    group, name = choice(path)
    study = composed(f"{group}={name}", *NEEDS.get((group, name), []))
    assert study.cells
    if group == "experiment":
        assert study.name == name.replace("/", "_")
        assert study.cells == tuple({cell.id: cell for cell in study.cells}.values())


def test_every_experiment_is_exactly_the_cells_its_table_needs(composed):
    assert renew.experiments(composed) == json.loads((Path(renew.__file__).parent / "experiments.json").read_text())


@pytest.mark.parametrize(
    "path", [path for path in FILES if choice(path)[0] == "experiment"], ids=lambda path: choice(path)[1]
)
def test_every_experiment_opens_with_its_claim_command_cost_and_what_to_expect(path: Path):
    text = path.read_text()
    assert f"experiment={choice(path)[1]}" in text or "make demo" in text
    for word in ("# Claim: ", "# Command: ", "# Cost: ", "# Expected: "):
        assert word in text


AXES = {
    "model": ["tiny", "smollm2_135m"],
    "base": ["minmax", "omniquant", "gptq"],
    "bits": ["int2", "int8", "matquant"],
    "grid": ["group_32", "per_channel"],
    "grid.symmetric": ["true", "false"],
    "scope": ["ffn", "ffn_attention"],
    "readout": ["embedded", "paper", "mixnmatch"],  # changes keys of other axes
    "perplexity": ["embedded", "c4"],
    "seed": ["0", "1", "2"],
    "base.num_steps": ["3", "null", "7"],
    "data.sequence_length": ["16", "32"],
    "model.name": ["renamed"],
}


def outcome(act: Callable[[], object]) -> object:
    """What comes out: values, or the words of a refusal."""
    try:
        return act()
    except UserError as error:
        return str(error)


@settings(max_examples=25, deadline=None)
@example({"readout": 1, "base": 0, "perplexity": 0}, ())
@given(
    st.dictionaries(st.sampled_from(sorted(AXES)), st.integers(0, 2), min_size=1, max_size=4),
    st.sampled_from([(), ("experiment=smoke",), ("experiment=table01", "weights=uniform")]),
)
def test_a_point_put_together_axis_by_axis_is_what_hydra_composes(drawn, overrides):
    point = [f"{axis}={AXES[axis][number % len(AXES[axis])]}" for axis, number in drawn.items()]
    # So many equal points that composing each value of each axis is worth it.
    put_together = outcome(lambda: next(iter(compose_points(overrides, [point] * 20))))
    assert put_together == outcome(lambda: compose([*overrides, *point]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(choice(path)))
def test_every_config_file_says_what_it_is(path: Path):
    assert any(line.startswith("# ") and "@package" not in line for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if choice(path)[0] != "experiment"],
    ids=lambda path: "/".join(choice(path)),
)
def test_every_field_stands_in_its_file_so_that_it_can_be_typed_without_a_plus(path: Path, composed):
    group, name = choice(path)
    study = composed(f"{group}={name}", *NEEDS.get((group, name), []))
    readout = study.setup.readout
    typed = {"tracking": study.setup.tracking, "readout": readout, "perplexity": readout.perplexity}
    typed["search"] = readout.search
    typed |= {axis: getattr(study.cells[0], axis) for axis in ("model", "data", "base", "grid")}
    spec = typed.get(group)
    if spec is not None:
        written = OmegaConf.load(path)
        fields = set(written.get("readout", written)) - {"defaults", "perplexity", "search"}
        assert fields == set(type(spec).model_fields) - {"perplexity", "search"}


def test_an_experiment_is_a_union_of_products():
    study = load_study(["experiment=smoke"])
    assert [(cell.base.kind, cell.objective and cell.objective.slug) for cell in study.cells] == [
        ("none", None),
        ("minmax", "int8"),
        ("omniquant", "int2"),
        ("omniquant", "matquant"),
    ]


def test_the_command_line_has_the_last_word():
    study = load_study(["experiment=smoke", "bits=int4", "seed=7"])
    assert [cell.objective and cell.objective.slug for cell in study.cells] == [None, "int4", "int4"]
    assert study.cells[-1].seed == 7


def test_a_multirun_is_the_product_of_its_choices():
    points = sweep_points(["base=minmax,omniquant", "bits=int2,matquant", "seed=1"])
    assert [point[:2] for point in points] == [
        ["base=minmax", "bits=int2"],
        ["base=minmax", "bits=matquant"],
        ["base=omniquant", "bits=int2"],
        ["base=omniquant", "bits=matquant"],
    ]


def test_uniform_weights_are_one_and_named_weights_are_the_papers():
    def terms(*overrides: str):
        objective = load_study(overrides).cells[0].objective
        assert objective is not None
        return objective.dump()["terms"]

    assert terms("bits=matquant") == {"int8": 1.0, "int4": 1.0, "int2": 1.0}
    assert terms("bits=matquant", "weights=gemma2") == {"int8": 0.1, "int4": 0.1, "int2": 1.0}


@pytest.mark.parametrize(
    ("overrides", "terms"),
    [
        (["bits=single_precision"], {"int2": 1.0}),
        (["bits=single_precision", "extra_bit=on"], {"int2+ep": 1.0}),
        (["bits=matquant", "extra_bit=on"], {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0}),
        (["bits=matquant", "weights=gemma2", "distill=only_8to2"], {"int8": 0.1, "int4": 0.1, "8->2": 1.0}),
        (["bits=matquant", "weights=gemma2", "distill=8to2"], {"int8": 0.1, "int4": 0.1, "int2": 1.0, "8->2": 1.0}),
        (
            ["bits=matquant", "weights=gemma2", "distill=8to4_and_2"],
            {"int8": 0.1, "int4": 0.1, "int2": 1.0, "8->4": 0.1, "8->2": 1.0},
        ),
        (
            ["bits=matquant", "extra_bit=on", "distill=8to2"],
            {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0, "8->2+ep": 1.0},
        ),
        (["bits=int2", "extra_bit=on", "distill=8to2"], {"int2": 1.0}),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_the_axes_compose_to_the_papers_objectives(overrides, terms):
    objective = load_study(overrides).cells[0].objective
    assert objective is not None
    assert objective.dump()["terms"] == terms


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["foo=1"], "there is no key foo"),
        (["base.num_step=1"], "did you mean base.num_steps"),
        (["+base.foo=1"], "there is no key base.foo; remove it"),
        (["+readout.foo=1"], "there is no key readout.foo; remove it"),
        (["bits=int9"], "bits=int9 does not exist; did you mean int8"),
        (["bits=int2", "bits.widths=[int4]"], "int4 is wider than its int2 parent; raise bits.parent_bits"),
        (["weights=gemma2", "bits=int2"], "weights.int8=0.1 weighs a width that is not trained"),
        (["+weights.int8=1"], "weights give nothing for int4"),
        (["+weights.int5=1"], "weights.int5=1 weighs a width that is not trained"),
        (["bits.widths=[two]"], "'two' is not a slice"),
        (["bits.widths=[]"], "at least one term"),
        (["readout.limit=0"], "readout.limit=0: Input should be greater than 0"),
        (["readout.plans=[int5,best]"], "'best' is not a read-out plan"),
        (["readout.source=folder"], "readout.data_dir goes with readout.source=folder"),
        (["base.loss=l3"], "base.loss=l3: Input should be 'l2' or 'relative_l2'"),
        (["base.clipping_lr=fast"], "base.clipping_lr=fast: Input should be a valid number"),
        (["base.batch_size=999"], "base.batch_size=999 exceeds data.num_sequences"),
        (["bits.widths=[int8,int2]", "distill=8to4_and_2"], "distill has a term 8->4, but int4 is not trained"),
        (["bits=int2,int4"], "needs --multirun"),
        (["model=hub"], "model.name is required"),
        (["experiment=dmeo"], "experiment=dmeo does not exist; did you mean demo"),
        (["tracking=mlflow"], "choices: none, wandb"),
        (["bits=[int2"], "'bits=[int2' cannot be read"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_that_names_the_value(overrides, message):
    with pytest.raises(UserError) as raised:
        load_study(overrides)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_choices_are_the_files_of_an_axis():
    assert choices("tracking") == ["none", "wandb"]
