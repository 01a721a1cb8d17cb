"""Words as a person types them: each is understood or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError, create_model

from matquant.config.cell import Checked, FilesText, FolderModel
from matquant.config.compose import check_line, choices, compose, sweep_points
from matquant.config.study import load_study
from matquant.config.syntax.files import nearest
from matquant.config.syntax.keys import leaves
from matquant.config.syntax.overrides import understood
from matquant.errors import UserError
from tests.refusals import refusal

FOLDER = ("model=folder", "model.name=x", "base=minmax")


# --- the words of an axis --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *((f"extra_bit={word}", "extra_bit=on") for word in ("true", "True", "1", "yes", "[on]", "ON")),
        *((f"extra_bit={word}", "extra_bit=off") for word in ("false", "null", "0", "no", "none")),
        ("bits=8", "bits=int8"),
        ("bits=[int4]", "bits=int4"),
        ("bits=INT4", "bits=int4"),
        ("grid=128", "grid=group_128"),
        *((f"distill={word}", "distill=none") for word in ("null", "false", "[]", "{}")),
        *((f"weights={word}", "weights=uniform") for word in ("null", "none", "[]")),
        *((f"tracking={word}", "tracking=none") for word in ("null", "false", "off")),
        ("tracking=true", "tracking=wandb"),
        ("data=null", "~data"),
        ("perplexity=null", "readout.perplexity=null"),
        ("perplexity=none", "readout.perplexity=null"),
        ("readout.perplexity=none", "readout.perplexity=null"),
        ("readout.tasks=piqa", 'readout.tasks=["piqa"]'),
        ("readout.tasks=null", "readout.tasks=[]"),
        ("readout.plans=[8,int4]", 'readout.plans=["8","int4"]'),
        ("bits.widths=int8", "bits.widths=[int8]"),
        ("distill.terms=8->2", 'distill.terms=["8->2"]'),
        ("model.name=7", 'model.name="7"'),
        ("model.revision=12e4567", 'model.revision="12e4567"'),
        ("cluster.partition=null", "cluster.partition=null"),
        ("+experiment=demo", "+experiment=demo"),
    ],
)
def test_a_word_with_one_obvious_meaning_is_understood(typed, meant):
    assert understood([typed]) == [meant]
    assert understood([meant]) == [meant]


@pytest.mark.parametrize("word", ["null", "false", "none", "[]"])
def test_no_experiment_is_the_cell_that_the_other_words_name(word):
    assert load_study([f"experiment={word}", "base=minmax"]) == load_study(["base=minmax"])


@pytest.mark.parametrize("axis", ["model", "base", "bits", "scope", "grid", "search", "readout", "cluster"])
@pytest.mark.parametrize("word", ["null", "true", "false", "3.5"])
def test_a_word_without_meaning_is_refused_with_the_choices(axis, word):
    said = refusal(f"{axis}={word}")
    assert said.startswith(f"{axis}={word} is not a choice of {axis}; choices: {choices(axis)[0]}, ")


def test_text_is_needed_by_what_learns_from_it_alone():
    assert "base=omniquant needs text; choose data=embedded" in refusal("data=null")
    assert load_study(["data=null", "base=minmax"]) == load_study(["base=minmax"])
    assert "leave out data.num_sequences=4" in refusal("data=null", "base=minmax", "data.num_sequences=4")


def test_perplexity_is_left_out_whatever_a_read_out_says_about_it():
    for readout in ("smoke", "paper", "embedded"):
        assert load_study([f"readout={readout}", "perplexity=null"]).setup.readout.perplexity is None


def test_the_words_mean_the_same_in_the_cells_of_an_experiment():
    def ids(cells: str, *more: str) -> list[str]:
        return [cell.id for cell in load_study([f"cells={cells}", *more]).cells]

    assert ids("[{extra_bit: [true, off], bits: [8, matquant], distill: [null]}]") == ids(
        "[{extra_bit: ['on', 'off'], bits: [int8, matquant], distill: [none]}]"
    )
    assert ids("[{base: minmax, bits: [8, 4]}]", "++only.bits=4") == ids("[{base: minmax, bits: int4}]")
    assert len(ids("[{base: minmax, data: [null, embedded]}]")) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cells=[{perplexity: [null, c4]}]"], "cells.perplexity: all cells of a study have the same perplexity"),
        (["cells=[{bits: []}]"], "cells.bits=[] names no choice"),
        (["cells={bits: int8}"], "cells={bits: int8} has not the shape that this key takes; write a list"),
        (["++only.bits=int8"], "keeps a part of an experiment's cells; add experiment=..."),
        (["experiment=smoke", "only.bits=int8"], "write it with two pluses to add it: ++only.bits=int8"),
        (["cluster=slurm", "cluster.sbatch={exclude: a[1-3]}"], "alone: 'cluster.sbatch.exclude=node[1-3]'"),
        (["cluster=slurm", "cluster.sbatch={array: 1-3}"], "array is not for you to set"),
        (
            ["base={kind: none}"],
            "base holds values of its own; type single ones as base.NAME=VALUE, and choose base by name",
        ),
        (["readout.search=quick"], "choose search=..., choices: evopress, matgptq, quick"),
        (["paths=/data"], "paths=/data: Input should be a valid dictionary, a section with values of its own"),
        (["bits"], "'bits' cannot be read: it has no value; write bits=CHOICE, choices: int2, "),
        (["=3"], "'=3' cannot be read: write KEY=VALUE"),
        (["base:none"], "'base:none' cannot be read: write base=none"),
        (["--base=none"], "an override has no dashes; write base=none"),
        (["hydra/sweeper=ax"], "hydra/sweeper=ax is not installed; install it with `pip install hydra-ax-sweeper`"),
        (
            ["hydra/sweeper=optun"],
            "hydra/sweeper=optun does not exist; did you mean optuna? choices: basic, optuna, ax",
        ),
        (["model=a#b"], "'model=a#b' cannot be read; choices: folder, "),
        *(([f"bits={word}"], f"bits={word} is not a choice of bits; choices: int2") for word in ("-1", "nan", "inf")),
        (["~data,~bits"], "'~data,~bits' cannot be read; write ~KEY, once for every key"),
        (["++sede=3"], "there is no key sede; remove it"),
        (["paths.runs=null"], "paths.runs=null: Input should be a path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_shapes_are_refused_by_name(overrides, message):
    assert message in refusal(*overrides)


@pytest.mark.parametrize("emptied", ["perplexity=null", "readout.perplexity=null", "perplexity=none"])
def test_a_word_below_a_key_that_another_word_empties_is_refused_in_either_order(emptied):
    below = "readout.perplexity.num_sequences=2"
    sentence = f"readout.perplexity=null leaves nothing to set readout.perplexity.num_sequences of; leave out {below}"
    assert refusal(below, emptied) == refusal(emptied, below) == sentence
    assert "leaves no data" in refusal("data.num_sequences=2", "data=null")


def test_an_unknown_experiment_names_the_nearest_few_and_the_way_to_all():
    assert refusal("experiment=table1").startswith("experiment=table1 does not exist; did you mean table01 or ")
    said = refusal("experiment=headline")
    assert "smollm2_135m/headline or " in said.partition("did you mean ")[2]
    assert said.endswith(f"python run.py experiment= lists its {len(choices('experiment'))} choices")
    assert len(said) < 250


def test_suggestions_are_keys_that_can_be_typed_and_never_twice_the_same():
    said = refusal("base.los=l2")
    names = said.partition("did you mean ")[2].partition("?")[0].split(" or ")
    assert names[0] == "base.loss"
    assert len(names) == len(set(names))
    assert "base" not in names
    assert "did you mean base.num_steps?" in refusal("num_steps=3")
    assert nearest("a.b", ["a.b", "a.b"], cutoff=0.5) == ""


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        *(f"seed={value}" for value in ("true", "-1", "9223372036854775808", "1.5", "null")),
        *(f"base.clipping_lr={value}" for value in ("true", "nan", "inf", "-inf")),
        *(f"base.num_steps={value}" for value in ("true", "(1)", "=3", "99999999999999999999999999")),
        *(f"readout.limit={value}" for value in ("true", "-1", "0", "all")),
        "base.clipping_init=nan",
        "base.weight_decay=inf",
        "bits.parent_bits=true",
        "save_every_min=nan",
        "device=1",
        "device=null",
        "base.compute_dtype=32",
        "readout.search.seed=-1",
        "paths.results=",
    ],
)
def test_a_value_that_is_no_such_number_is_refused_by_name(typed):
    assert refusal(typed).startswith(f"{typed}: ")


def specs(base: type[Checked] = Checked) -> Iterator[type[Checked]]:
    for spec in base.__subclasses__():
        yield spec
        yield from specs(spec)


def test_true_is_a_number_in_no_field_of_configuration():
    numbers = [
        field
        for spec in specs()
        for field in spec.model_fields.values()
        if not {int, float}.isdisjoint(leaves(field.annotation))
    ]
    assert len(numbers) > 50
    for field in numbers:
        assert field.annotation is not None
        with pytest.raises(ValidationError):
            create_model("One", value=(field.annotation, field))(value=True)


@pytest.mark.parametrize("weight", ["true", "nan", "inf", "0", "-1"])
def test_a_weight_is_a_positive_number(weight):
    assert refusal("weights=gemma2", f"weights.int8={weight}").startswith(f"weights.int8={weight}")


def test_the_overflow_bucket_is_an_axis_and_no_part_of_a_width():
    assert "int2+ep is int2 with extra_bit=on" in refusal("bits.widths=[int8,int2+ep]")
    assert "choose extra_bit=on" in refusal("distill.terms=[8->2+ep]")


def test_a_read_out_reads_and_measures_something_and_nothing_twice():
    assert refusal("readout.plans=[]").startswith("readout.plans: an empty list reads nothing")
    assert "measures nothing; choose perplexity=embedded" in refusal("readout.tasks=[]", "perplexity=null")
    assert "add readout.apply_chat_template=true" in refusal("readout.fewshot_as_multiturn=true")
    assert "no key readout.samples: readout.limit takes the first" in refusal("readout.samples={piqa:[3]}")
    assert "readout.system_instruction=TEXT stands before" in refusal("readout.system_prompt=x")
    readout = load_study(["readout.tasks=[piqa,boolq,piqa]", "readout.plans=[4,int4,int2]"]).setup.readout
    assert (readout.tasks, readout.plans) == (("piqa", "boolq"), ("int4", "int2"))


# --- paths and other text --------------------------------------------------------------------------------------------

NAMES = ["a#b", "run (1)", "ü", "a=b", "{a}", "[a]", "it's", 'a"b', "a&b;c!", "a?b*c|d<e>f", "$a", "a b", "a\\b", "~a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_needs_no_quotes_beyond_those_of_the_shell(name):
    def path(*overrides: str) -> str:
        model = load_study([*FOLDER, *overrides]).cells[0].model
        assert isinstance(model, FolderModel)
        return model.path

    assert path(f"model.path=/x/{name}/y") == f"/x/{name}/y"
    assert path(*sweep_points([f"model.path=/x/{name},/y"])[0]) == f"/x/{name}"
    (data,) = (cell.data for cell in load_study(["data=text_files", f"data.paths=[/x/{name}.txt, b.txt]"]).cells)
    assert isinstance(data, FilesText)
    assert data.paths == (f"/x/{name}.txt", "b.txt")
    assert load_study([f"paths.results=/tmp/{name}"]).setup.paths.results == Path(f"/tmp/{name}")


@pytest.mark.parametrize("name", ["a,b", "${a}", "1", "null", "true", "[x]", "a\\,b"])
def test_a_path_that_is_there_is_taken_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for typed in (name, str(tmp_path / name)):
        (cell,) = load_study([*FOLDER, f"model.path={typed}"]).cells
        assert isinstance(cell.model, FolderModel)
        assert cell.model.path == typed
        (point,) = sweep_points([f"model.path={typed}"])
        assert compose([*FOLDER, *point])["model"]["path"] == typed


def test_hydras_own_quotes_and_references_work_as_before():
    for typed in ("model.path='/x/a b'", 'model.path="/x/a b"', "model.path=/x/a\\ b"):
        assert compose([*FOLDER, typed])["model"]["path"] == "/x/a b"
    assert compose([*FOLDER, "model.path=${paths.runs}/m"])["model"]["path"] == "runs/m"
    assert "refers to ${nope}, which is no key" in refusal(*FOLDER, "model.path=/x/${nope}")
    lines = load_study(["cluster=slurm", "cluster.setup=['module load cuda/12.8', 'a=1']"]).setup.cluster
    assert lines.model_dump()["setup"] == ("module load cuda/12.8", "a=1")


# --- sweeps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "points"),
    [
        ("bits=8,4", ["bits=int8", "bits=int4"]),
        ("bits=glob(int?,exclude=[int3,int6,int8])", ["bits=int2", "bits=int4"]),
        ("bits=choice(8,int4)", ["bits=int8", "bits=int4"]),
        ("bits=range(2,5)", ["bits=int2", "bits=int3", "bits=int4"]),
        ("extra_bit=true,off", ["extra_bit=on", "extra_bit=off"]),
        ("base.num_steps=range(1,3)", ["base.num_steps=1", "base.num_steps=2"]),
        ("readout.tasks=[piqa],[boolq]", ["readout.tasks=[piqa]", "readout.tasks=[boolq]"]),
        ("paths.out=/x/ü,b", ['paths.out="/x/ü"', "paths.out=b"]),
    ],
)
def test_a_sweep_is_made_of_words_that_are_understood(typed, points):
    assert [point for (point,) in sweep_points([typed])] == points
    assert check_line(["--cfg", "job", points[0]]) == ["--cfg", "job", points[0]]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("base.num_steps=interval(1,4)", "is a search space"),
        ("bits=interval(1,4)", "is a search space of numbers; choices: int2, "),
        ("base.num_steps=tag(log,interval(1,4))", "is a search space"),
        ("bits=8,9", "bits=9 is not a choice of bits"),
        ("bits=glob(float*)", "matches no choice of bits"),
        ("base.num_steps=glob(*)", "a glob chooses among the files of an axis"),
        ("data=null,embedded", "data=null cannot be swept beside other choices; run it alone: python run.py data=null"),
        ("hydra.sweeper.params={seed: 1}", "hydra.sweeper.params is not read; type what is swept as overrides"),
        ("seed=range(3,1)", "seed=range(3,1) sweeps over no value"),
        ("~data,~bits", "'~data,~bits' cannot be read"),
        ("bits=nan,int8", "bits=nan is not a choice of bits"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(typed, message):
    with pytest.raises(UserError) as raised:
        sweep_points([typed])
    assert message in str(raised.value)
