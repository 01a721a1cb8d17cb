"""Configuration: every file composes, and every mistake is one sentence that names the value and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from matquant.checkout import PROJECT
from matquant.config.compose import check_line, choices, compose, compose_points, config_folders, key_of, sweep_points
from matquant.config.study import Study, load_study
from matquant.errors import UserError
from tests.golden import renew

NEEDS = {
    ("model", "hub"): ["model.repo=a/b", "model.name=b"],
    ("model", "folder"): ["model.path=.", "model.name=x"],
    ("base", "foreign"): ["model=folder", f"model.path={Path(renew.__file__).parent / 'foreign'}", "model.name=x"],
    ("weights", "base_first"): ["bits=matquant_84"],
    ("data", "hub"): ["data.repo=a/b"],
    ("data", "text_files"): ["data.paths=[a.txt]"],
    ("perplexity", "text_files"): ["readout.perplexity.paths=[a.txt]"],
}
SPECS: dict[str, tuple[str, Callable[[Study], BaseModel | None]]] = {
    "model": ("model", lambda study: study.cells[0].model),
    "data": ("data", lambda study: study.cells[0].data),
    "base": ("base", lambda study: study.cells[0].base),
    "grid": ("grid", lambda study: study.cells[0].grid),
    "readout": ("readout", lambda study: study.setup.readout),
    "perplexity": ("readout.perplexity", lambda study: study.setup.readout.perplexity),
    "search": ("readout.search", lambda study: study.setup.readout.search),
    "tracking": ("tracking", lambda study: study.setup.tracking),
    "cluster": ("cluster", lambda study: study.setup.cluster),
}
"""The place of the values of a group's files, and the type that is made of them."""
FILES = [
    path
    for folder in config_folders()
    for path in sorted(folder.glob("*/**/*.yaml"))
    if path.relative_to(folder).parts[0] != "hydra"
]


def choice(path: Path) -> tuple[str, str]:
    """The axis of a file and how its choice is typed: ("experiment", "smollm2/table01")."""
    (folder,) = (folder for folder in config_folders() if path.is_relative_to(folder))
    group, *name = path.relative_to(folder).with_suffix("").parts
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
    """The outcome: values, or the words of a refusal."""
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
    [path for path in FILES if choice(path)[0] in SPECS],
    ids=lambda path: "/".join(choice(path)),
)
def test_every_field_of_a_choice_can_be_typed_without_a_plus(path: Path, composed):
    group, name = choice(path)
    place, spec_of = SPECS[group]
    chosen = [f"{group}={name}", *NEEDS.get((group, name), [])]
    spec, values = spec_of(composed(*chosen)), compose(chosen)
    assert spec is not None
    for key in place.split("."):
        values = values[key]
    assert set(values) == set(type(spec).model_fields)
    typed = [
        f"{place}.{key}={json.dumps(value)}".replace(r"\n", "\n")  # Hydra has no escape for a line's end
        for key, value in values.items()
        if not isinstance(value, dict)  # sections of their own
    ]
    assert compose([*chosen, *typed]) == compose(chosen)


def test_an_experiment_is_a_union_of_products():
    study = load_study(["experiment=smoke"])
    assert [(cell.base.kind, cell.objective and cell.objective.slug) for cell in study.cells] == [
        ("none", None),
        ("minmax", "int8"),
        ("omniquant", "int2"),
        ("omniquant", "matquant"),
    ]


def test_an_experiment_can_be_a_part_of_another_one():
    def ids(*overrides: str) -> set[str]:
        return {cell.id for cell in load_study(["experiment=table01", *overrides]).cells}

    models = ("gemma2_2b", "gemma2_9b", "mistral_7b")
    parts = [ids(f"+only.model=[{model}]") for model in models]
    assert sorted(map(len, parts)) == [7, 7, 7]
    assert set.union(*parts) == ids()
    assert ids("+only.model=[gemma2_2b,mistral_7b]") == parts[0] | parts[2]


def test_a_model_that_is_typed_takes_the_place_of_the_one_that_an_experiment_keeps():
    cells = load_study(["experiment=table11", "model=tiny"]).cells
    assert {cell.model.name for cell in cells} == {"tiny"}
    assert len(cells) == len(load_study(["experiment=table11"]).cells)


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
        (["+readout.perplexity.foo=1"], "there is no key readout.perplexity.foo; remove it"),
        (["readout.perplexity.num_sequences=0"], "readout.perplexity.num_sequences=0: Input should be"),
        (["base.kind=foo"], "base.kind=foo does not exist; choose one of 'none', 'foreign', 'minmax'"),
        (["bits=int9"], "bits=int9 does not exist; did you mean int8"),
        (["bits=int2", "bits.widths=[int4]"], "int4 is wider than its int2 parent; set bits.parent_bits=4"),
        (["weights=gemma2", "bits=int2"], "weights.int8=0.1, but int8 is not trained"),
        (["+weights.int8=1"], "no weight for int4, int2 (bits trains int8, int4, int2); add +weights.int4=1.0"),
        (["+weights.int5=1"], "weights.int5=1, but int5 is not trained"),
        (["bits.widths=[two]"], "'two' is not a slice"),
        (["bits.widths=[]"], "at least one term"),
        (["readout.limit=0"], "readout.limit=0: Input should be greater than 0"),
        (["readout.plans=[int5,best]"], "'best' is not a read-out plan"),
        (["readout.source=folder"], "readout.data_dir and readout.source=folder go together"),
        (["base.loss=l3"], "base.loss=l3: Input should be 'l2' or 'relative_l2'"),
        (["base.clipping_lr=fast"], "base.clipping_lr=fast: Input should be a valid number"),
        (["base.batch_size=999"], "base.batch_size=999 exceeds data.num_sequences"),
        (["bits.widths=[int8,int2]", "distill=8to4_and_2"], "distill has a term 8->4, but int4 is not trained"),
        (["bits=int2,int4"], "needs --multirun"),
        (["model=hub"], "model.name is required"),
        (["model=folder", "model.name=x", "model.path=y", "base.num_step=1"], "did you mean base.num_steps"),
        (["model=folder", "model.nam=x", "model.path=y"], "there is no key model.nam in this configuration; did you "),
        (["foo=1", "base=gptq", "base.percdam=2"], "there is no key foo in this configuration"),
        (["experiment=smoke", "+only.modle=[tiny]"], "only.modle: no cell has this axis; choose one of base, "),
        (["experiment=smoke", "+only.base=[qat]"], "leaves no cell; choose among base=minmax,none,omniquant"),
        (
            ["base=gptq", "base.num_steps=3"],
            "there is no key base.num_steps in this configuration; did you mean data.num_seq",
        ),
        (["weights={int8:1}"], "weights holds values of its own; set one of them with +weights.NAME=VALUE"),
        (["experiment=dmeo"], "experiment=dmeo does not exist; did you mean demo"),
        (["tracking=mlflow"], "choices: none, trackio, wandb"),
        (["bits=[int2"], "'bits=[int2' cannot be read"),
        (["~bits"], "bits is missing; leave out ~bits"),
        (["~base.kind"], "base.kind is missing; leave out ~base.kind"),
        (["~readout.plans"], "readout.plans is missing"),
        (["~distill.terms"], "distill.terms is missing"),
        (["bits.widths={int3:1}"], "is not a slice"),
        (["bits.parent_bits=x"], "bits.parent_bits=x: Input should be a valid integer"),
        (["+weights.int8=x"], "weights.int8=x: Input should be a valid number"),
        (["distill.terms=[x]"], "distill.terms: "),
        (["distill.terms=[4]"], "distill.terms"),
        (["cells=[1]"], "cells.0=1: Input should be a valid dictionary"),
        (["cells=x"], "cells=x: Input should be a valid list"),
        (["name=../x"], "name=../x: a name is a part of a folder's name"),
        (["name="], "a name is a part of a folder's name"),
        (["extra_bit=2"], "extra_bit=2 is not a choice of extra_bit; choices: off, on"),
        (["base=null"], "base=null is not a choice of base; choices: foreign, gptq, "),
        (["weights=[1]"], "weights=[1] is not a choice of weights"),
        (["base="], "base= has no value; choices: foreign, gptq, "),
        (["+base=minmax"], "leave out the plus and write base=minmax"),
        (["experiment=smollm2/nope"], "experiment=smollm2/nope does not exist; did you mean smollm2/table"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_that_names_the_value(overrides, message):
    with pytest.raises(UserError) as raised:
        load_study(overrides)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "remedies"),
    [
        (["+weights.int8=1"], ["+weights.int4=1.0 +weights.int2=1.0"]),
        (["weights=gemma2", "bits=int2"], ["weights=uniform"]),
        (["bits.widths=[int8,int2]", "distill=8to4_and_2"], ["distill=none", "bits.widths=[int8,int2,int4]"]),
        (["bits=int2", "bits.widths=[int4]"], ["bits.parent_bits=4"]),
        (["cluster=slurm", "cluster.time_min=1"], ["cluster.signal_delay_s=30"]),
        (["cluster=slurm", "cluster.evaluate_time_min=1"], ["cluster.signal_delay_s=30"]),
        (["cluster=local", "cluster.time_min=1"], ["cluster.signal_delay_s=30"]),
        (["base=gptq", "distill=8to2"], ["distill=none"]),
        (["base=gptq", "bits=int4", "base.student_input=int8"], ["base.student_input=parent"]),
        (
            ["base=gptq", "base.true_sequential=true", "base.student_input=full"],
            ["base.true_sequential=false", "base.student_input=parent"],
        ),
    ],
    ids=lambda value: "_".join(value),
)
def test_the_remedy_of_a_mistake_works_when_it_is_typed(overrides: list[str], remedies: list[str]):
    with pytest.raises(UserError) as raised:
        load_study(overrides)
    for remedy in remedies:
        assert remedy in str(raised.value)
        typed = remedy.split()
        kept = [override for override in overrides if key_of(override) not in map(key_of, typed)]
        assert load_study([*kept, *typed]).cells


def test_a_studys_results_are_the_same_from_every_folder_unless_a_folder_is_typed(tmp_path, monkeypatch):
    named = Path("studies/smollm2_135m/results")
    chosen = ["experiment=smollm2_135m/headline"]
    assert load_study(chosen).setup.paths.results in (named, PROJECT / named)
    monkeypatch.chdir(tmp_path)
    paths = load_study(chosen).setup.paths
    assert (paths.results, paths.runs) == (PROJECT / named, Path("runs"))
    assert load_study([*chosen, f"paths.results={named}"]).setup.paths.results == named
    monkeypatch.chdir(PROJECT)
    assert load_study(chosen).setup.paths.results == named


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nope"], "unrecognized arguments: --nope; "),
        (["--cfg", "nope"], "invalid choice: 'nope'"),
        (["--cfg", "job", "base=nope"], "base=nope does not exist; did you mean none?"),
        (
            ["--cfg", "job", "-m", "base=none,nope"],
            "--cfg and --info show one configuration, and --multirun has several",
        ),
        (["base=none", "--cfg", "job", "bits=int8"], "unrecognized arguments: bits=int8; "),
        (["-h", "extra"], "'extra' cannot be read"),
    ],
)
def test_a_mistake_beside_a_flag_of_hydras_is_one_sentence_too(words, message):
    with pytest.raises(UserError) as raised:
        check_line(words)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_still_required_does_not_keep_a_composition_from_being_looked_at():
    check_line(["--cfg", "job", "model=hub"])


def test_choices_are_the_files_of_an_axis():
    assert choices("tracking") == ["none", "trackio", "wandb"]


ON_C4 = ["base=omniquant", "bits=int4", "data=c4", "readout=paper", "perplexity=c4"]


@pytest.mark.parametrize(
    ("typed", "remedies"),
    [
        (["readout.perplexity.heldout_split=train"], ["data.heldout_split=train"]),
        (
            ["readout.perplexity.heldout_split=train", "readout.perplexity.train_split=validation"],
            ["data.heldout_split=train", "readout.perplexity.train_split=train"],
        ),
        (["data.train_split=validation"], ["readout.perplexity.train_split=validation"]),
    ],
)
def test_text_that_a_model_is_trained_on_is_not_read_on(typed, remedies):
    with pytest.raises(UserError, match=r"is calibration text, and log perplexity would be read on it too") as refused:
        load_study([*ON_C4, *typed])
    assert all(remedy in str(refused.value) for remedy in remedies)
    load_study([*ON_C4, *typed, *remedies])  # what was refused is accepted once the remedies are typed


def test_rows_that_are_joined_have_no_documents_to_be_held_out():
    with pytest.raises(UserError, match="choose another split or text"):
        load_study([*ON_C4, "perplexity=c4_gptq", "data.train_split=validation"])
