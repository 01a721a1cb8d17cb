"""Where learned grids start and how far they may reach, and that what is stored is what was trained."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import nn

from matquant.algorithms import omniquant
from matquant.codes.code_choice import code_choice
from matquant.codes.column_solve import solve
from matquant.codes.nested import NestedWeight, nest, read_at, read_slices
from matquant.codes.quantizers import (
    MOST_OF_REACH,
    LearnableClipping,
    Range,
    grid_between,
    grouped,
    weight_range,
)
from matquant.codes.range_search import best_for_all, search_factors, searched_grid
from matquant.codes.slicing import slice_codes
from matquant.config.cell import Cell, GPTQBase, GridSpec, OmniQuantBase
from matquant.errors import UserError
from matquant.models.layers.families import blocks, linears
from matquant.notation import Objective, Slice
from reference.gptq_reference import best_factors, brute_force, output_error
from reference.nested_reference import read_slice
from tests.algorithms.test_algorithms import GRID, NESTED, Memory, equal, fit  # noqa: F401 -- a fixture
from tests.algorithms.test_gptq import fit as fit_gptq  # noqa: F401 -- a fixture
from tests.algorithms.test_gptq import parts  # noqa: F401 -- a fixture
from tests.algorithms.test_qat import training  # noqa: F401 -- a fixture
from tests.codes.test_column_solve import problem

INT2 = Objective.parse(2, {"int2": 1.0})
SINGLE = Objective.parse(8, {"int2": 1.0})
EXTRA = Objective.parse(8, {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0})
ALL = tuple(map(Slice.parse, ("int8", "int4", "int3", "int2", "int2+ep")))
ZEROS = ("real", "rounded", "aligned_int4", "aligned_int2")
GRIDS = [
    GridSpec(group_size=32, zero=zero, headroom=headroom, scale_dtype=dtype)
    for (zero, headroom), dtype in zip(
        product(ZEROS, ("full", "int3")), ("float32", "bfloat16") * len(ZEROS), strict=True
    )
] + [GridSpec(symmetric=True, headroom="int2")]
STARTS = [(4.0, 1.0), (4.0, 1.5), ("search", 1.0), ("search", 1.5)]


def weights(seed: int = 0, outputs: int = 8, inputs: int = 64) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


# --- reach -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", [4.0, 0.0, -2.0])
@pytest.mark.parametrize("reach", [1.0, 1.2, 1.5, 3.0])
def test_factors_start_at_the_sigmoid_of_the_logit_whatever_the_reach(init, reach):
    for factor in LearnableClipping(weights(), 8, GRID, init, reach).factors():
        assert torch.allclose(factor, torch.tensor(init).sigmoid(), rtol=1e-5)


def test_a_slice_learns_to_reach_beyond_the_largest_weight_where_it_may():
    weight, errors, factors = weights(1, 64, 64), {}, {}
    for reach in (1.0, 1.5):
        clipping = LearnableClipping(weight, 8, GRID, 1.0, reach)
        optimizer = torch.optim.Adam(clipping.parameters(), lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            error = (read_slices(weight, clipping(), [Slice(2)], parent_bits=8)[Slice(2)] - weight).square().mean()
            error.backward()
            optimizer.step()
            errors[reach] = error.item()
        factors[reach] = clipping.factors()[1]
    assert factors[1.0].max() < 1 < factors[1.5].max() < 1.5
    assert errors[1.5] < 0.99 * errors[1.0]


@pytest.mark.parametrize("reach", [1.0, 1.5])
@pytest.mark.parametrize("zero", ZEROS)
def test_the_gradient_that_reaches_a_logit_is_the_twins(zero, reach):
    weight, spec = weights(2), GridSpec(group_size=32, zero=zero)
    pulls = [torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) for i in range(len(ALL))]
    gradients = []
    for twin in (False, True):
        clipping = LearnableClipping(weight, 8, spec, 1.0, reach)
        grid = clipping()
        read = (
            {part: read_slice(weight, grid, part, parent_bits=8) for part in ALL}
            if twin
            else read_slices(weight, grid, ALL, parent_bits=8)
        )
        torch.stack([(read[part] * pull).sum() for part, pull in zip(ALL, pulls, strict=True)]).sum().backward()
        gradients.append([parameter.grad for parameter in clipping.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("zero", ["rounded", "aligned_int4"])
def test_a_rounded_zero_is_a_constant_to_the_gradient(zero):
    """A twin with the zero written down as numbers, so that only the scale depends on the logits."""
    weight, spec = weights(3), GridSpec(group_size=32, zero=zero)
    clipping = LearnableClipping(weight, 8, spec, 1.0, 1.5)
    assert not clipping().zero.requires_grad
    low, high = clipping.factors()
    scale = clipping().scale
    (ours,) = torch.autograd.grad(scale.sum(), clipping.high_logit, retain_graph=True)
    step = 1e-3
    ends = clipping.ends
    # Away from a zero that jumps the slope of the scale is that of a quotient of the ends.
    moved = high + step * high * (1 - high / 1.5)
    shifted = grid_between(Range(low * ends.low, moved * ends.high), 8, spec)
    same = shifted.zero == clipping().zero
    assert same.any()
    assert torch.allclose((shifted.scale - scale)[same] / step, ours[same], rtol=0.02, atol=1e-5)


def test_trained_grids_of_qat_start_at_the_same_loss_and_may_reach_beyond_the_largest_weight(training):  # noqa: F811
    near, far = (training(train_scales=True, clipping_reach=reach, scale_lr=0.5, num_steps=20) for reach in (1.0, 1.5))
    assert near.advance()["loss"] == pytest.approx(far.advance()["loss"], rel=1e-5)
    for _ in range(10):
        far.advance()
    factors = torch.cat([torch.cat(layer.clipping.factors()).flatten() for layer in far.nested.values()])
    assert factors.max() > 1
    assert factors.max() < 1.5


# --- optimizer -------------------------------------------------------------------------------------------------------


def test_the_epsilon_reaches_the_optimizer_and_drowns_small_gradients(fit, monkeypatch):  # noqa: F811
    seen = []
    original = torch.optim.AdamW

    def watched(*positional, **keywords):
        seen.append(keywords["eps"])
        return original(*positional, **keywords)

    monkeypatch.setattr(torch.optim, "AdamW", watched)
    usual, coarse = fit(Memory())[1], fit(Memory(), adam_epsilon=1e-2)[1]
    assert seen == [1e-15] * 2 + [1e-2] * 2
    assert not equal(usual, coarse)


def test_learning_rates_are_constant_or_fall_along_half_a_cosine_and_are_logged(fit):  # noqa: F811
    rates = {}
    for schedule in ("constant", "cosine"):
        progress = Memory()
        fit(progress, schedule=schedule)
        rates[schedule] = [record["lr"] for record in progress.records if record["block"] == 1]
    assert rates["constant"] == [0.05] * 4
    assert rates["cosine"] == pytest.approx([0.05 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])


def test_a_schedule_moves_the_transformation_too(fit):  # noqa: F811
    changes = {"transformation": True, "transformation_lr": 0.02, "clipping_lr": 1e-30}
    constant, cosine = (fit(Memory(), **changes, schedule=schedule)[1] for schedule in ("constant", "cosine"))
    name = "model.layers.0.mlp.gate_proj"
    assert not torch.equal(constant[name].transform.scale, cosine[name].transform.scale)


# --- what training sees is what is stored ----------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("transformation", [False, "published"])
def test_omniquant_stores_the_layer_that_it_trained(grid, start, transformation):
    init, reach = start
    facts = {"kind": "omniquant", "num_steps": 1, "batch_size": 1, "clipping_lr": 1.0, "transformation": transformation}
    base = OmniQuantBase.model_validate({**facts, "clipping_init": init, "clipping_reach": reach})
    settings = omniquant.Settings(base, NESTED, "ffn", grid, 0)
    linear = nn.Linear(64, 8)
    with torch.no_grad():
        linear.weight.copy_(weights(4))
    transform = omniquant.PublishedTransform(torch.linspace(0.5, 2, 64)) if transformation else None
    layer = omniquant.LearnableLayer(linear, settings, transform)
    with torch.no_grad():
        for parameter in layer.parameters():  # as training would leave them
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    for part, seen in layer.read(ALL).items():
        assert torch.equal(seen.weight, layer.nested().at(part).weight), part


@pytest.mark.parametrize(
    ("grid", "changes"),
    [
        (GRIDS[2], {"clipping_init": "search", "clipping_reach": 1.5}),
        (GRIDS[5], {"clipping_init": "search"}),
        (GRIDS[3], {"clipping_init": "search", "clipping_reach": 1.5, "train_scales": True}),
        (GRIDS[4], {"train_scales": True, "clipping_reach": 1.5}),
        (GRIDS[7], {}),
        (GRIDS[8], {"train_scales": True}),
    ],
    ids=str,
)
def test_qat_stores_the_layers_that_it_trained(training, grid, changes):  # noqa: F811
    trained = training(grid=grid, **changes)
    for _ in range(2):
        trained.advance()
    layers = trained.layers()
    for part in ALL:
        with torch.no_grad(), read_at(trained.model, part):
            for path, layer in trained.nested.items():
                assert torch.equal(layer.weight, layers[path].at(part).weight), (path, part)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("clipping", ["none", "search"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_stores_the_codes_that_it_chose_on_a_grid_as_it_is_stored(grid, clipping, act_order):
    """With inputs that do not correlate every code is the best one of its own weight."""
    weight, base = weights(6), GPTQBase(kind="gptq", clipping=clipping, act_order=act_order)
    solution = solve(weight, torch.eye(64), objective=EXTRA, spec=grid, base=base)
    number = solution.grid.scale.shape[1]
    position = (
        grouped(weight, number) / solution.grid.scale.unsqueeze(-1) + solution.grid.zero.unsqueeze(-1)
    ).flatten()
    choice = code_choice(EXTRA)
    expected = choice.codes(choice.place(position, choice.places_like(position)), position)
    assert torch.equal(solution.codes.flatten(), expected)
    dtype = getattr(torch, grid.scale_dtype)
    assert all(torch.equal(part, part.to(dtype).float()) for part in solution.grid)


# --- ends that a search found ----------------------------------------------------------------------------------------


def nested_by_search(weight: torch.Tensor, objective: Objective, reach: float, importance=None) -> NestedWeight:
    """The layer between the ends that are searched for, kept a little within the reach."""
    factors = search_factors(weight, objective, GRID, reach=reach, importance=importance)
    low, high = (factor.clamp((1 - MOST_OF_REACH) * reach, MOST_OF_REACH * reach) for factor in factors)
    ends = weight_range(weight, GRID)
    return nest(weight, grid_between(Range(low * ends.low, high * ends.high), objective.parent_bits, GRID), 8)


def same(ours: NestedWeight, expected: NestedWeight) -> bool:
    """Equal but for the rounding of a logit and back."""
    codes = (ours.codes.int() - expected.codes.int()).abs()
    close = torch.allclose(ours.grid.scale, expected.grid.scale, rtol=1e-5)
    return bool(close and codes.max() <= 1 and codes.sum() < 10)


@pytest.mark.parametrize("reach", [1.0, 1.5])
@pytest.mark.parametrize("objective", [SINGLE, NESTED, EXTRA], ids=["single", "nested", "extra"])
def test_omniquant_starts_between_the_ends_of_the_search(fit, objective, reach):  # noqa: F811
    model, layers = fit(Memory(), objective, clipping_init="search", clipping_reach=reach, clipping_lr=1e-30)
    for path, linear in linears(blocks(model)[1], "ffn").items():
        expected = nested_by_search(linear.weight.detach(), objective, reach)
        assert same(layers[f"model.layers.1.{path}"], expected), path


def test_errors_are_weighed_by_the_inputs_of_the_unquantized_model(fit, parts):  # noqa: F811
    changes = {"clipping_init": "search", "clipping_lr": 1e-30, "clipping_reach": 1.5}
    weighed, plain = (fit(Memory(), importance=importance, **changes)[1] for importance in ("inputs", "plain"))
    model, tokens = parts
    seen: list[torch.Tensor] = []
    found = linears(blocks(model)[1], "ffn")
    for linear in found.values():
        linear.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=tokens)  # gate, up, down
    for (path, linear), x in zip(found.items(), seen, strict=True):
        expected = nested_by_search(linear.weight.detach(), NESTED, 1.5, x.square().mean(0))
        ours, other = (of[f"model.layers.1.{path}"].grid.scale for of in (weighed, plain))
        assert (ours - expected.grid.scale).abs().mean() < 0.2 * (other - expected.grid.scale).abs().mean(), path


@pytest.mark.parametrize("importance", [None, torch.linspace(0.1, 3, 64)], ids=["plain", "inputs"])
def test_a_transformed_layer_is_searched_as_it_is_quantized_and_weighed_as_it_is_read(importance):
    linear, transform = nn.Linear(64, 8), omniquant.PublishedTransform(torch.linspace(0.2, 3, 64))
    facts = {"kind": "omniquant", "num_steps": 1, "batch_size": 1, "clipping_lr": 1.0, "clipping_reach": 1.5}
    base = OmniQuantBase.model_validate({**facts, "clipping_init": "search", "transformation": "published"})
    layer = omniquant.LearnableLayer(linear, omniquant.Settings(base, SINGLE, "ffn", GRID, 0), transform, importance)
    weight, scale = linear.weight.detach(), transform.scale.detach()
    squares = torch.ones(64) if importance is None else importance

    def error(read: torch.Tensor) -> torch.Tensor:
        return ((read - weight).square() * squares).sum()

    naive = nest(weight, searched_grid(weight * scale, SINGLE, GRID, reach=1.5), 8, transform(weight, weight[:, 0]))
    ours, other = (error(nested.at(Slice(2)).weight) for nested in (layer.nested(), naive))
    assert ours < other


def test_a_few_steps_from_searched_ends_beat_as_many_from_those_of_minmax(fit):  # noqa: F811
    last = {}
    for init in (4.0, "search"):
        progress = Memory()
        fit(progress, SINGLE, clipping_init=init, clipping_reach=1.5, clipping_lr=1e-2, schedule="cosine")
        last[init] = progress.records[3]["int2"]
    assert last["search"] < 0.95 * last[4.0]


def test_qat_between_fixed_ends_trains_weights_and_keeps_the_factors_of_the_search(training):  # noqa: F811
    trained = training(SINGLE, clipping_init="search", clipping_reach=1.5)
    before = {path: layer.linear.weight.clone() for path, layer in trained.nested.items()}
    for _ in range(3):
        trained.advance()
    for path, nested in trained.layers().items():
        weight = trained.nested[path].linear.weight.detach()
        assert not torch.equal(weight, before[path])
        ends = weight_range(weight, GRID)
        low, high = search_factors(before[path], SINGLE, GRID, reach=1.5)
        expected = nest(weight, grid_between(Range(low * ends.low, high * ends.high), 8, GRID), 8)
        assert equal({path: nested}, {path: expected})


def test_trained_grids_of_qat_start_between_the_ends_of_the_search(training):  # noqa: F811
    layers = training(SINGLE, clipping_init="search", clipping_reach=1.5, train_scales=True)
    for path, nested in layers.layers().items():
        weight = layers.nested[path].linear.weight.detach()
        assert same(nested, nested_by_search(weight, SINGLE, 1.5)), path


@pytest.mark.parametrize("train_scales", [False, True])
def test_a_run_from_searched_ends_that_is_resumed_ends_in_the_same_bits(training, train_scales):  # noqa: F811
    changes = {"clipping_init": "search", "clipping_reach": 1.5, "train_scales": train_scales}
    whole, resumed = training(**changes), training(**changes)
    for _ in range(2):
        whole.advance()
    saved = Memory()
    saved.state = {name: tensor.clone() for name, tensor in whole.state().items()}
    resumed.restore(saved)
    for run in (whole, resumed):
        run.advance()
    assert equal(whole.layers(), resumed.layers())


SOLVED = {"clipping": "search", "clipping_reach": 1.4}


@pytest.mark.parametrize("importance", ["plain", "inputs"])
@pytest.mark.parametrize("objective", [SINGLE, NESTED], ids=["single", "nested"])
def test_gptq_searches_a_group_when_its_turn_comes(objective, importance):
    weight, hessian = problem(1)

    def factors(part: torch.Tensor, squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = search_factors(
            part,
            objective,
            GridSpec(),
            reach=1.4,
            importance=squares if importance == "inputs" else None,
            codes=best_for_all(objective),
        )
        return found.low[:, 0], found.high[:, 0]

    base = GPTQBase(kind="gptq", importance=importance, **SOLVED)
    ours = solve(weight, hessian, objective=objective, spec=GRID, base=base)
    expected = brute_force(weight, hessian, objective, group_size=32, symmetric=False, damping=0.01, factors=factors)
    for term in objective.terms:  # of codes that all slices read alike the twin takes another
        ours_read, theirs = (slice_codes(codes, term.slice, parent_bits=8) for codes in (ours.codes, expected["codes"]))
        # Rounding moves a weight over a break, or a factor to its neighbour, here and there.
        assert (ours_read == theirs).float().mean() > 0.9
    assert torch.allclose(ours.grid.scale[:, 0], expected["scale"][:, 0], rtol=1e-5)


def test_the_ends_of_gptq_are_as_good_as_all_that_could_be_tried():
    weight, hessian = problem(2, outputs=6, inputs=16)
    objective = Objective.parse(4, {"int4": 0.3, "int2": 1.0})
    squares = hessian.diagonal()
    base = GPTQBase(kind="gptq", **SOLVED)
    ours = solve(weight, torch.diag(squares), objective=objective, spec=GridSpec(), base=base)
    candidates = torch.linspace(0.3, 1.4, 23).tolist()
    low, high = best_factors(weight, squares, objective, candidates)
    ends = Range(
        *(part * end for part, end in zip((low[:, None], high[:, None]), weight_range(weight, GridSpec()), strict=True))
    )
    twin = solve_on(weight, grid_between(ends, 4, GridSpec()), objective)

    def error(codes: torch.Tensor, grid) -> float:
        nested = NestedWeight(codes, grid, 4)
        read = ((term.weight, nested.at(term.slice).weight) for term in objective.terms)
        return sum(factor * ((one - weight).square() * squares).sum().item() for factor, one in read)

    assert error(ours.codes, ours.grid) < 1.02 * error(*twin)


def solve_on(weight: torch.Tensor, grid, objective: Objective):
    """The best code of every weight on its grid, with the grid."""
    position = (weight / grid.scale + grid.zero).flatten()
    choice = code_choice(objective)
    return choice.codes(choice.place(position, choice.places_like(position)), position).view_as(weight), grid


@pytest.mark.parametrize("importance", ["plain", "inputs"])
def test_with_act_order_all_groups_are_searched_beforehand(importance):
    weight, hessian = problem(3)
    base = GPTQBase(kind="gptq", act_order=True, importance=importance, **SOLVED)
    ours = solve(weight, hessian, objective=NESTED, spec=GRID, base=base).grid
    squares = hessian.diagonal() if importance == "inputs" else None
    expected = searched_grid(weight, NESTED, GRID, reach=1.4, importance=squares, codes=best_for_all(NESTED))
    assert torch.equal(ours.scale, expected.scale)
    assert torch.equal(ours.zero, expected.zero)


@pytest.mark.parametrize("objective", [INT2, SINGLE, EXTRA], ids=["int2", "single", "extra"])
@pytest.mark.parametrize("act_order", [False, True])
def test_searched_ends_keep_the_outputs_of_gptq_better(objective, act_order):
    weight, hessian = problem(5, outputs=32)
    errors = {}
    for clipping in ("none", "search"):
        base = GPTQBase(kind="gptq", clipping=clipping, act_order=act_order)
        solution = solve(weight, hessian, objective=objective, spec=GRID, base=base)
        read = NestedWeight(solution.codes, solution.grid, objective.parent_bits).at(min(objective.trained)).weight
        errors[clipping] = output_error(weight, hessian, read)
    assert errors["search"] < 0.9 * errors["none"]


def test_an_input_that_no_token_activates_has_no_say_in_the_ends():
    weight, hessian = problem(9)
    weight[:, 40], hessian[40], hessian[:, 40] = 5.0, 0.0, 0.0
    for act_order in (False, True):
        base = GPTQBase(kind="gptq", act_order=act_order, **SOLVED)
        grid = solve(weight, hessian, objective=NESTED, spec=GRID, base=base).grid
        assert grid.scale.isfinite().all()
        assert grid.scale.max() < 1.4 * 2 * weight[:, torch.arange(96) != 40].abs().max() / 255 * 3


def test_a_resumed_gptq_with_searched_ends_ends_in_the_same_bits(fit_gptq):  # noqa: F811
    whole, resumed = Memory(), Memory()
    expected = fit_gptq(whole, clipping="search")
    resumed.pieces["model.layers.0"] = whole.pieces["model.layers.0"]
    assert equal(fit_gptq(resumed, clipping="search"), expected)


# --- what would change nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        ("base=search base.batch_size=2", ["base.importance=inputs", "base.batch_size=4"]),
        ("base=omniquant_plain base.importance=inputs", ["base.clipping_init=search", "base.importance=plain"]),
        (
            "base=qat base.clipping_reach=1.5",
            ["base.train_scales=true", "base.clipping_init=search", "base.clipping_reach=1.0"],
        ),
        (
            "base=qat base.clipping_init=2.0",
            ["base.train_scales=true", "base.clipping_init=search", "base.clipping_init=4.0"],
        ),
        ("base=gptq_plain base.importance=plain", ["base.clipping=search", "base.importance=inputs"]),
        ("base=gptq_plain base.clipping_reach=1.2", ["base.clipping=search", "base.clipping_reach=1.5"]),
    ],
)
def test_a_value_that_nothing_would_read_is_refused_and_every_remedy_works(tiny_study, words, remedies):
    with pytest.raises(UserError) as refused:
        tiny_study(*words.split())
    for remedy in remedies:
        assert remedy in str(refused.value)
        key = remedy.partition("=")[0]
        (cell,) = tiny_study(*(word for word in words.split() if not word.startswith(f"{key}=")), remedy).cells
        assert isinstance(cell, Cell)


@pytest.mark.parametrize("value", ["serach", "true", "null", "nan"])
def test_a_start_that_is_neither_a_number_nor_search_is_refused_in_one_sentence(tiny_study, value):
    for base in ("omniquant", "qat"):
        with pytest.raises(
            UserError, match=f"^base.clipping_init={value}: Input should be a finite number.* or search$"
        ):
            tiny_study(f"base={base}", f"base.clipping_init={value}")


def test_a_group_of_equal_weights_is_kept_within_a_few_parts_of_its_value():
    constant = torch.full((2, 64), 0.5)
    clipping = LearnableClipping(constant, 8, GRID, search_factors(constant, NESTED, GRID, reach=1.5), 1.5)
    read = nest(constant, clipping(), 8).at(Slice(8)).weight
    assert torch.allclose(read, constant, rtol=0.02)
