"""base=search: what a cell of it is, its layers, going on after a stop, and the importance of inputs."""

from __future__ import annotations

import pytest
import torch

from matquant.algorithms import range_searched
from matquant.algorithms.importance import alive, importance_of
from matquant.algorithms.progress import Layers
from matquant.codes.nested import nest
from matquant.codes.range_search import searched_grid
from matquant.config.cell import SearchBase
from matquant.config.study import load_study
from matquant.errors import NotFiniteError, UserError
from matquant.models.layers.experts import is_of_expert
from matquant.models.layers.families import block_name, blocks, linears
from matquant.models.loading import load_model
from matquant.models.text.tokens import token_blocks
from matquant.notation import Objective, Slice
from matquant.runs import stopping
from matquant.runs.folder import RunDir
from matquant.runs.stopping import Stopped
from matquant.runs.tracking import NoTracker
from matquant.training.train import train
from tests.algorithms.test_algorithms import GRID, NESTED, Memory, equal
from tests.mixtures import loaded
from tests.ranks import said, study

INPUTS = ("base=search", "base.importance=inputs", "base.batch_size=2")


@pytest.fixture
def parts(tiny_study):
    """The tiny model and its calibration text."""
    found = tiny_study(*INPUTS)
    cell = found.cells[0]
    model = load_model(cell.model, cache=found.setup.paths.cache, dtype="float32", device=torch.device("cpu"))
    return model.model, token_blocks(cell.data, model.tokenizer, "train", seed=0, add_bos=False)


def fit(parts, progress: Memory, objective: Objective = NESTED, **changes) -> Layers:
    base = SearchBase.model_validate({"kind": "search", **changes})
    model, tokens = parts
    return range_searched.fit(model, tokens, range_searched.Settings(base, objective, "ffn", GRID), progress)


def test_a_search_of_plain_errors_reads_no_text_and_has_no_seed():
    point = ["model=tiny", "base=search", "bits=matquant"]
    (plain,), (again,) = (load_study([*point, *more]).cells for more in ([], ["seed=3", "data=c4"]))
    assert (plain.data, plain.seed, plain.id) == (None, 0, again.id)
    (inputs,) = load_study([*point, "base.importance=inputs", "seed=3"]).cells
    assert inputs.data is not None
    assert inputs.seed == 3
    assert len({cell.id for cell in (plain, inputs, *load_study([*point, "extra_bit=on"]).cells)}) == 3


def test_a_term_with_a_teacher_is_refused():
    with pytest.raises(UserError, match=r"base=search has no teacher for the term 8->2; choose distill=none$"):
        load_study(["model=tiny", "base=search", "bits=matquant", "distill=8to2"])


def test_several_widths_are_refused_by_minmax_with_a_base_that_takes_them():
    facts = load_study(["model=tiny", "base=search", "bits=matquant"]).cells[0].model_dump(mode="json")
    with pytest.raises(ValueError, match=r"choose bits=int8, which is read at any width, or base=search or"):
        load_study(["model=tiny", "base=search"]).cells[0].model_validate({**facts, "base": {"kind": "minmax"}})


def test_every_layer_in_scope_is_rounded_to_nearest_on_its_searched_grid(parts):
    progress = Memory()
    layers = fit(parts, progress, clipping_reach=1.2)
    expected = {
        f"{block_name(parts[0], index)}.{path}": nest(
            linear.weight, searched_grid(linear.weight, NESTED, GRID, reach=1.2), 8
        )
        for index, block in enumerate(blocks(parts[0]))
        for path, linear in linears(block, "ffn").items()
    }
    assert equal(layers, expected)
    assert progress.ticks == [(1, 2), (2, 2)]


def test_a_search_weighs_errors_by_the_inputs_that_gptq_measures(parts):
    model, tokens = parts
    measured = importance_of(model, tokens, "ffn_attention", batch_size=3)
    seen: dict[str, torch.Tensor] = {}
    for path, linear in linears(blocks(model)[1], "ffn_attention").items():
        linear.register_forward_pre_hook(lambda _, given, *, path=path: seen.update({path: given[0].flatten(0, 1)}))
    with torch.no_grad():
        model(input_ids=tokens)
    for path, x in seen.items():
        assert torch.allclose(measured[f"{block_name(model, 1)}.{path}"], x.square().mean(0), rtol=1e-4)
    weighted, plain = (fit(parts, Memory(), importance=choice) for choice in ("inputs", "plain"))
    assert not equal(weighted, plain)
    name = f"{block_name(model, 1)}.mlp.down_proj"
    weight = blocks(model)[1].get_parameter("mlp.down_proj.weight").detach()
    by_inputs, plainly = (
        ((one[name].at(Slice(2)).weight - weight) @ seen["mlp.down_proj"].T).square().sum() for one in (weighted, plain)
    )
    assert by_inputs < 1.05 * plainly  # the diagonal is no more than a part of what the outputs lose


def test_an_expert_has_importance_for_inputs_that_its_tokens_do_not_activate():
    model = loaded("qwen3_moe").model
    measured = importance_of(model, torch.zeros(1, 4, dtype=torch.long), "ffn", batch_size=1)
    experts = {path: one for path, one in measured.items() if is_of_expert(path)}
    assert any((one == 1).all() for one in experts.values()), "an expert without tokens"
    assert all((one > 0).all() for one in experts.values())
    assert alive(torch.tensor([0.0, 2.0, 4.0])).tolist() == [3.0, 2.0, 4.0]


def test_an_input_that_is_not_finite_is_named(parts):
    model, tokens = parts
    blocks(model)[0].get_parameter("mlp.up_proj.weight").data.fill_(1e30)
    with pytest.raises(NotFiniteError, match=r"input of model\.layers\.0\.mlp\.down_proj is not finite; set model\."):
        importance_of(model, tokens, "ffn", batch_size=4)


def test_a_stopped_search_goes_on_to_the_same_bits(tmp_path):
    cell, setup = study(tmp_path / "stopped", base=INPUTS)
    expected = study(tmp_path / "undisturbed", base=INPUTS)
    train(*expected, NoTracker())
    stopping.request()
    try:
        assert said(Stopped, lambda: train(cell, setup, NoTracker())).startswith("stopped after ")
    finally:
        stopping.reset()
    train(cell, setup, NoTracker())
    files = [RunDir(one.paths.runs, cell.id).checkpoint / "nested.safetensors" for one in (setup, expected[1])]
    assert files[0].read_bytes() == files[1].read_bytes()
