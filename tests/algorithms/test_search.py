"""Search on a model: the loss is a divergence, only changed layers are rewritten, an interrupted search goes on."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from evaluation import searching
from evaluation.evaluate import evaluate
from evaluation.protocol import missing
from evaluation.results.store import ResultStore
from evaluation.stages import run_cell
from matquant.algorithms import minmax
from matquant.codes.extra_precision import effective_bits
from matquant.codes.layouts import slices_of
from matquant.codes.nested import materialize
from matquant.config.cell import Cell, GridSpec
from matquant.config.setup import Setup
from matquant.config.study import Study
from matquant.errors import UserError
from matquant.models.loading import load_model
from matquant.models.text.tokens import token_blocks
from matquant.notation import Plan, Slice
from matquant.runs import stopping
from matquant.runs.checkpoint import load_checkpoint
from matquant.runs.files import read_json, write_json
from matquant.runs.folder import RunDir
from matquant.runs.status import Beat, read_status, silent
from matquant.runs.stopping import Stopped
from matquant.runs.tracking import NoTracker
from matquant.search import fitness as fitness_module
from matquant.search import stage as stage_module
from matquant.search.fitness import Fitness
from matquant.search.request import found_plan
from matquant.search.space import space_of
from matquant.search.stage import find_plan, search
from matquant.training.train import train
from tests.algorithms.test_algorithms import Memory
from tests.tiny import TINY_GPTQ

GRID = GridSpec(group_size=32)
QUICK = ["readout.search.num_sequences=4", "readout.search.generations=2", "readout.search.offspring=6"]
STRATEGIES = [f"{name}{kind}@3.5" for name in ("dynamic_program", "evolution") for kind in ("", "_linear")]


@pytest.fixture
def parts(tiny_study):
    study = tiny_study("base=minmax", "bits=int8")
    cell = study.cells[0]
    loaded = load_model(cell.model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    data = tiny_study("base=gptq").cells[0].data
    text = token_blocks(data, loaded.tokenizer, "train", seed=0, add_bos=False)
    layers = minmax.fit(loaded.model, parent_bits=8, scope="ffn_attention", grid=GRID, progress=Memory())
    return loaded.model, layers, text


def test_switching_rewrites_only_what_changed_and_gives_what_writing_all_gives(parts, monkeypatch):
    model, layers, text = parts
    fitness, written = Fitness(model, layers, text, top_k=16, batch_size=2), []
    original = fitness_module.write_layer
    monkeypatch.setattr(fitness_module, "write_layer", lambda *rest: (written.append(rest[1]), original(*rest)))
    first = dict.fromkeys(layers, Slice(4))
    assert fitness.switch(first) == len(layers) == len(written)
    second = first | {"model.layers.1.mlp.up_proj": Slice(2)}
    assert fitness.switch(second) == 1
    assert written[len(layers) :] == ["model.layers.1.mlp.up_proj"]
    assert fitness.switch(second) == 0
    loss = fitness.loss(second)
    fitness.forget()
    assert fitness.switch(second) == len(layers)
    assert fitness.loss(second) == loss


def test_fewer_bits_are_farther_from_the_unquantized_model(parts):
    model, layers, text = parts
    fitness = Fitness(model, layers, text, top_k=16, batch_size=3)
    losses = [fitness.loss(dict.fromkeys(layers, Slice(bits))) for bits in (8, 4, 2, 8)]
    assert 0 <= losses[0] < losses[1] < losses[2]
    assert losses[3] == losses[0]


@pytest.mark.parametrize("extra_precision", [False, True])
def test_the_budget_is_counted_as_everywhere_else(parts, extra_precision):
    _, layers, _ = parts
    space = space_of(layers, budget=4.0, granularity="linear", extra_precision=extra_precision)
    levels = tuple(number % 5 for number in range(len(space.choices.units)))
    named = tuple(space.slices(levels).items())
    assert space.choices.bits(levels) == pytest.approx(effective_bits(layers, Plan("made", layers=named)))


def test_layers_that_are_served_as_one_share_a_width(parts):
    _, layers, _ = parts
    space = space_of(layers, budget=4.0, granularity="linear", extra_precision=False)
    together = Counter(tuple(name.split(".")[-1] for name in names) for names in space.members.values())
    fused = {("q_proj", "k_proj", "v_proj"): 2, ("o_proj",): 2, ("gate_proj", "up_proj"): 2, ("down_proj",): 2}
    assert together == fused
    assert len(space_of(layers, budget=4.0, granularity="block", extra_precision=False).members) == 2


@pytest.fixture
def trained(tiny_study):
    study = tiny_study(*TINY_GPTQ, *QUICK, "model.config.num_hidden_layers=3")
    train(study.cells[0], study.setup, NoTracker())
    return study.cells[0], study.setup


def found(cell: Cell, setup: Setup, wanted: str, beat: Beat = silent) -> Path:
    """The path of a plan that is searched for alone."""
    plan = Plan.parse(wanted)
    return search(cell, setup, [plan], beat)[plan]


@pytest.mark.parametrize("wanted", ["pyramid@3.5", *STRATEGIES])
def test_every_strategy_writes_a_plan_that_a_read_out_names(trained, wanted, monkeypatch):
    cell, setup = trained
    beats: list[tuple[int, int]] = []
    path = found(cell, setup, wanted, beat=lambda done, total, doing: beats.append((done, total)))
    assert beats == sorted(beats)
    assert all(done == total for done, total in beats[-1:])
    assert bool(beats) == ("pyramid" not in wanted)
    layers = load_checkpoint(RunDir(setup.paths.runs, cell.id).checkpoint, cell).layers
    plan, facts = Plan.parse(str(path)), json.loads(path.read_text())
    assert set(slices_of(plan, layers)) == set(layers)
    assert effective_bits(layers, plan) == pytest.approx(facts["effective_bits"])
    assert facts["effective_bits"] <= 3.5
    loaded = load_model(cell.model, cache=setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    data = cell.data.model_copy(update={"num_sequences": 4})
    text = token_blocks(data, loaded.tokenizer, "train", seed=0, add_bos=False)
    fitness = Fitness(loaded.model, layers, text, top_k=64, batch_size=4)
    materialize(loaded.model, layers, plan)
    fitness.written = dict(slices_of(plan, layers))
    assert fitness.loss(fitness.written) == pytest.approx(facts["loss"], abs=1e-7)
    named = find_plan(cell, setup, Plan.parse(wanted))
    assert named.strategy is None or slices_of(named, layers) == slices_of(plan, layers)
    assert named.label.startswith(wanted)
    monkeypatch.setattr(Fitness, "__init__", lambda *_, **__: pytest.fail("measured again"))
    assert found(cell, setup, wanted) == path


def test_the_evolved_plan_is_no_worse_than_the_uniform_one_of_its_budget(trained):
    cell, setup = trained
    facts = json.loads(found(cell, setup, "evolution@4").read_text())
    layers = load_checkpoint(RunDir(setup.paths.runs, cell.id).checkpoint, cell).layers
    loaded = load_model(cell.model, cache=setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    data = cell.data.model_copy(update={"num_sequences": 4})
    text = token_blocks(data, loaded.tokenizer, "train", seed=0, add_bos=False)
    start = Fitness(loaded.model, layers, text, top_k=64, batch_size=4).loss(dict.fromkeys(layers, Slice(4)))
    assert facts["loss"] <= start + 1e-7


@pytest.mark.parametrize("wanted", ["dynamic_program_linear@3.5", "evolution_linear@3.5"])
def test_an_interrupted_search_goes_on_and_finds_the_same_plan(trained, wanted, monkeypatch):
    cell, setup = trained
    run = RunDir(setup.paths.runs, cell.id)
    calls, original = [], Fitness.loss

    def counting(self, *rest):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(Fitness, "loss", counting)
    stop = math.inf
    expected = found(cell, setup, wanted).read_text()
    whole = len(calls)
    run.plan(wanted).unlink()
    for path in (run.path / "search").iterdir():
        path.unlink()
    calls.clear()
    stop = whole - 2
    with pytest.raises(KeyboardInterrupt):
        found(cell, setup, wanted)
    assert not run.plan(wanted).exists()
    stop = math.inf
    assert found(cell, setup, wanted).read_text() == expected
    assert len(calls) < 2 * whole - 2


def test_a_budget_out_of_reach_leaves_no_plan_and_keeps_no_other_from_being_measured(tiny_study):
    plans = "readout.plans=[evolution@2, evolution@5, int4]"
    study = tiny_study(*TINY_GPTQ, *QUICK, "extra_bit='on'", "readout.tasks=[]", plans)
    (cell,), setup = study.cells, study.setup
    run = RunDir(setup.paths.runs, cell.id)
    with pytest.raises(UserError, match=r"a budget of 2 bits is out of reach: with every layer at int2 or int8"):
        run_cell(cell, setup)
    assert [path.name.partition("-")[0] for path in run.plans.iterdir()] == ["evolution@5+ep"]
    told = {stage: read_status(run.status(stage)) for stage in ("train", "search", "evaluate")}
    assert {stage: status and (status.state, status.reason) for stage, status in told.items()} == {
        "train": ("done", None),
        "search": ("failed", "bad input"),
        "evaluate": ("failed", "bad input"),
    }
    store = ResultStore(setup.paths.results)
    ((refused, _),) = missing(cell, setup.readout, store).items()
    assert str(refused).startswith("evolution@2+ep-")
    (searched,) = [plan for plan in setup.readout.plans_of(cell) if str(plan).startswith("evolution@5+ep-")]
    (result,) = [result for result in store.results(cell.id) if result.plan == str(searched)]
    assert result.effective_bits <= 5 + 1e-9
    layers = load_checkpoint(RunDir(setup.paths.runs, cell.id).checkpoint, cell).layers
    assert result.effective_bits == pytest.approx(effective_bits(layers, store.plan(cell.id, searched)))


SEVERAL = ["dynamic_program@3", "dynamic_program@4", "evolution@3", "evolution_linear@3.5", "evolution@4"]


@pytest.fixture
def several(tiny_study):
    """A trained cell whose read-out names several searches."""
    plans = f"readout.plans=[int4, {', '.join(SEVERAL)}]"
    study = tiny_study(*TINY_GPTQ, *QUICK, "model.config.num_hidden_layers=3", "readout.tasks=[]", plans)
    (cell,) = study.cells
    train(cell, study.setup, NoTracker())
    return cell, study.setup


def plan_files(cell: Cell, setup: Setup) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in RunDir(setup.paths.runs, cell.id).plans.iterdir()}


def test_all_plans_of_a_cell_share_one_model_one_checkpoint_and_one_reading_by_the_unquantized_model(
    several, monkeypatch
):
    cell, setup = several
    loads: Counter[str] = Counter()
    for module, name in ((stage_module, "load_model"), (stage_module, "load_checkpoint"), (Fitness, "_read_teacher")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, name=name, original=original, **k: (loads.update([name]), original(*a, **k))[1]
        )
    run_cell(cell, setup)
    assert loads == {"load_model": 1, "load_checkpoint": 1, "_read_teacher": 1}
    assert len(plan_files(cell, setup)) == len(SEVERAL)
    assert not missing(cell, setup.readout, ResultStore(setup.paths.results))


def test_plans_that_are_searched_for_together_are_those_of_searches_one_by_one(several):
    cell, setup = several
    run, plans = RunDir(setup.paths.runs, cell.id), [setup.readout.searched(Plan.parse(text)) for text in SEVERAL]
    search(cell, setup, plans)
    together = plan_files(cell, setup)
    shutil.rmtree(run.plans)
    shutil.rmtree(run.searches)
    for plan in reversed(plans):
        search(cell, setup, [plan])
    assert plan_files(cell, setup) == together
    assert len(together) == len(SEVERAL)


def test_the_stage_goes_on_with_the_plans_that_an_interrupted_one_has_not_found(several, monkeypatch):
    cell, setup = several
    plans = [setup.readout.searched(Plan.parse(text)) for text in SEVERAL]

    def stop_in_the_third(done: int, total: int, doing: str | None) -> None:
        if doing and f"3 of {len(plans)}" in doing:
            stopping.request()

    try:
        with pytest.raises(Stopped):
            search(cell, setup, plans, stop_in_the_third)
    finally:
        stopping.reset()
    first = plan_files(cell, setup)
    assert len(first) == 2
    asked: list[str | None] = []
    search(cell, setup, plans, lambda done, total, doing: asked.append(doing))
    assert {(doing or "").partition(",")[0] for doing in asked} == {str(plan) for plan in plans[2:]}
    assert {name: content for name, content in plan_files(cell, setup).items() if name in first} == first


def test_evaluation_reads_plans_and_searches_for_none(several, monkeypatch):
    cell, setup = several
    monkeypatch.setattr(Fitness, "__init__", lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(UserError, match=r"no widths were found yet for dynamic_program@3-\w+, .* of tiny"):
        evaluate(cell, setup, NoTracker())
    measured = {result.plan for result in ResultStore(setup.paths.results).results(cell.id)}
    assert measured == {"int4"}


def test_the_remedy_for_a_plan_that_was_not_found_is_one_that_can_be_typed(several, monkeypatch, capsys):
    cell, setup = several
    with pytest.raises(UserError) as refused:
        evaluate(cell, setup, NoTracker())
    (typed,) = re.findall(r"`matquant search (.*)`", str(refused.value))
    overrides = ["model=tiny", "data.num_sequences=8"]
    monkeypatch.setattr(searching, "load_study", lambda given: given == overrides and Study("cell", (cell,), setup))
    searching.main([*typed.split(), *overrides])
    assert len(capsys.readouterr().out.splitlines()) == len(SEVERAL)
    evaluate(cell, setup, NoTracker())
    assert not missing(cell, setup.readout, ResultStore(setup.paths.results))


def test_a_plan_of_a_checkpoint_that_is_no_more_is_not_read(several):
    cell, setup = several
    run, (plan, *_) = RunDir(setup.paths.runs, cell.id), setup.readout.plans_of(cell)[1:]
    search(cell, setup, [plan])
    assert found_plan(run, setup.readout, plan) is not None
    write_json(run.description, {**read_json(run.description), "checksum": "another"})
    assert found_plan(run, setup.readout, plan) is None


def test_a_cell_whose_read_out_names_no_search_has_no_such_stage(tiny_study):
    study = tiny_study(*TINY_GPTQ, "readout.tasks=[]", "readout.plans=[int4, pyramid@3]")
    (cell,) = study.cells
    run_cell(cell, study.setup)
    run = RunDir(study.setup.paths.runs, cell.id)
    assert sorted(path.name for path in run.path.glob("*.lock")) == ["evaluate.lock", "train.lock"]
    assert not run.status("search").exists()


def test_a_search_that_is_told_other_things_has_another_name(tiny_study):
    def names(*overrides: str) -> list[str]:
        study = tiny_study(*TINY_GPTQ, "readout.plans=[evolution@3, int4, pyramid@3]", *overrides)
        return [str(plan) for plan in study.setup.readout.plans_of(study.cells[0])]

    default, other = names(), names("readout.search.seed=1")
    assert default == ["evolution@3", "int4", "pyramid@3"]
    assert other[0].startswith("evolution@3-")
    assert other[1:] == default[1:]


def test_the_overflow_bucket_of_a_plan_that_is_typed_is_searched_for(trained):
    cell, setup = trained
    plain, bucket = (json.loads(found(cell, setup, plan).read_text()) for plan in ("pyramid@3.5", "pyramid@3.5+ep"))
    assert not any("+ep" in part for part in plain["layers"].values())
    assert any("+ep" in part for part in bucket["layers"].values())
    assert plain["search"] != bucket["search"]


def test_a_cell_that_is_not_trained_is_refused(tiny_study):
    study = tiny_study(*TINY_GPTQ)
    with pytest.raises(UserError, match="is not trained yet; run it with `matquant run`"):
        search(study.cells[0], study.setup, [Plan.parse("pyramid@3")])


def test_a_plan_of_another_checkpoint_is_refused_with_the_layer(parts, tmp_path: Path):
    _, layers, _ = parts
    path = tmp_path / "odd.json"
    named = dict.fromkeys(layers, "int4") | {"model.layers.9.mlp.up_proj": "int4"}
    path.write_text(json.dumps({"layers": named}))
    with pytest.raises(UserError, match=r"model.layers.9.mlp.up_proj is in only one of them"):
        slices_of(Plan.parse(str(path)), layers)
