"""Base algorithms: MinMax is Eq. 1; OmniQuant without training is MinMax, with training it is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matquant.algorithms import minmax, omniquant
from matquant.algorithms.calibration import Shelf
from matquant.algorithms.progress import Layers
from matquant.codes.nested import nest, undo
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec, OmniQuantBase
from matquant.models.layers.families import blocks, linears
from matquant.models.loading import load_model
from matquant.models.text.tokens import token_blocks
from matquant.notation import Objective, Slice

GRID = GridSpec(group_size=32)
SHELF = Shelf()
NESTED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})


class Memory:
    """`Progress` that keeps everything in memory."""

    def __init__(self) -> None:
        self.pieces: dict[str, Layers] = {}
        self.records: list[Mapping[str, Any]] = []
        self.ticks: list[tuple[int, int]] = []
        self.state: Mapping[str, Tensor] | None = None
        self.saved: list[Mapping[str, Tensor]] = []

    def resume(self, piece: str, compute: Callable[[], Layers]) -> Layers:
        if piece not in self.pieces:
            self.pieces[piece] = compute()
        return self.pieces[piece]

    def load(self, state: Mapping[str, Tensor]) -> bool:
        if self.state is None:
            return False
        assert list(state) == list(self.state)
        for name, tensor in state.items():
            tensor.copy_(self.state[name])
        return True

    def save(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        self.saved.append({name: tensor.clone() for name, tensor in state().items()})

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.records.append(metrics)

    def tick(self, done: int, total: int, note: str) -> None:
        self.ticks.append((done, total))


@pytest.fixture
def fit(tiny_study):
    study = tiny_study("base=omniquant")
    cell = study.cells[0]

    def run(progress: Memory, objective: Objective = NESTED, *, seed: int = 0, shelf: Shelf = SHELF, **changes):
        loaded = load_model(cell.model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu"))
        facts = {"kind": "omniquant", "num_steps": 4, "batch_size": 2, "clipping_lr": 0.05, **changes}
        settings = omniquant.Settings(OmniQuantBase.model_validate(facts), objective, "ffn", GRID, seed, shelf)
        tokens = token_blocks(cell.data, loaded.tokenizer, "train", seed=0, add_bos=False)
        return loaded.model, omniquant.fit(loaded.model, tokens, settings, progress)

    return run


def equal(left: Layers, right: Layers) -> bool:
    return list(left) == list(right) and all(
        torch.equal(a.codes, b.codes)
        and torch.equal(a.grid.scale, b.grid.scale)
        and torch.equal(a.grid.zero, b.grid.zero)
        for a, b in zip(left.values(), right.values(), strict=True)
    )


def minmax_layers(model: torch.nn.Module) -> dict[str, object]:
    return {
        f"model.layers.{index}.{name}": nest(linear.weight, minmax_grid(linear.weight, 8, GRID), 8)
        for index, block in enumerate(blocks(model))
        for name, linear in linears(block, "ffn").items()
    }


def test_minmax_is_round_to_nearest_of_every_layer_in_scope(fit):
    model, _ = fit(Memory())
    assert equal(minmax.fit(model, parent_bits=8, scope="ffn", grid=GRID, progress=Memory()), minmax_layers(model))  # type: ignore[arg-type]


@pytest.mark.parametrize("transformation", [False, True])
def test_omniquant_that_clips_nothing_and_learns_nothing_is_minmax(fit, transformation):
    changes = {"transformation": transformation, "transformation_lr": 1e-30}
    model, layers = fit(Memory(), clipping_init=40.0, clipping_lr=1e-30, **changes)
    assert equal(layers, minmax_layers(model))  # type: ignore[arg-type]


def test_a_fit_is_reproducible_and_depends_on_the_seed(fit):
    first, again, other = fit(Memory())[1], fit(Memory())[1], fit(Memory(), seed=1)[1]
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_fit_does_not_depend_on_where_activations_are_kept(fit, tmp_path, place):
    assert equal(fit(Memory(), shelf=Shelf(place=place, folder=tmp_path))[1], fit(Memory())[1])


def test_activations_in_fewer_bits_change_a_fit_a_little(fit):
    rounded, exact = fit(Memory(), shelf=Shelf(torch.bfloat16))[1], fit(Memory())[1]
    assert not equal(rounded, exact)
    for name, nested in exact.items():
        assert torch.allclose(rounded[name].grid.scale, nested.grid.scale, rtol=0.2)


def test_the_models_own_weights_are_not_changed(fit, tiny_study):
    study = tiny_study()
    fresh = load_model(
        study.cells[0].model, cache=study.setup.paths.cache, dtype="float32", device=torch.device("cpu")
    ).model
    model, _ = fit(Memory())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_resumed_fit_ends_in_the_same_bits(fit):
    whole, resumed = Memory(), Memory()
    _, expected = fit(whole)
    resumed.pieces["model.layers.0"] = whole.pieces["model.layers.0"]
    assert equal(fit(resumed)[1], expected)
    assert {record["block"] for record in resumed.records} == {1}


@pytest.mark.parametrize("loss", ["l2", "relative_l2"])
@pytest.mark.parametrize("student_input", ["own_slice", "parent"])
def test_training_lowers_the_loss_of_the_narrowest_slice(fit, loss, student_input):
    progress = Memory()
    fit(progress, Objective.parse(8, {"int2": 1.0}), num_steps=30, loss=loss, student_input=student_input)
    losses = [float(record["int2"]) for record in progress.records if record["block"] == 0]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def learned_layer(*, bias: bool = True) -> tuple[nn.Linear, omniquant.LearnableLayer]:
    """A layer with the clipping and the transformation of a layer that was trained for a while."""
    generator = torch.Generator().manual_seed(0)
    base = OmniQuantBase(kind="omniquant", num_steps=1, batch_size=1, clipping_lr=1.0, transformation=True)
    settings = omniquant.Settings(base, NESTED, "ffn", GRID, 0)
    linear, transform = nn.Linear(64, 8, bias=bias), omniquant.LearnableTransform(64, torch.device("cpu"))
    with torch.no_grad():
        linear.weight.copy_(torch.randn(8, 64, generator=generator))
        transform.log_scale.copy_(0.3 * torch.randn(64, generator=generator))
        transform.shift.copy_(torch.randn(64, generator=generator))
    return linear, omniquant.LearnableLayer(linear, settings, transform)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part", ["int8", "int4", "int2", "int2+ep"])
@torch.no_grad()
def test_the_effective_weight_and_bias_equal_the_explicitly_transformed_layer(part, bias):
    linear, layer = learned_layer(bias=bias)
    x = torch.randn(5, 64)
    weight, grid, transform = layer()
    quantized = nest(weight, grid, 8).at(Slice.parse(part)).weight
    shift, own = transform.shift, 0 if linear.bias is None else linear.bias
    explicit = ((x - shift) / transform.scale) @ quantized.T + own + linear.weight @ shift
    read = layer.nested().at(Slice.parse(part))
    assert torch.allclose(x @ read.weight.T + read.bias, explicit, atol=1e-4)


@pytest.mark.parametrize("part", ["int8", "int4", "int2", "int2+ep"])
def test_training_sees_the_transformed_layer_that_is_stored(part):
    _, layer = learned_layer()
    seen, stored = layer.read([Slice.parse(part)])[Slice.parse(part)], layer.nested().at(Slice.parse(part))
    assert torch.equal(seen.weight, stored.weight)
    assert torch.equal(seen.bias, stored.bias)


def test_a_transformation_changes_nothing_where_nothing_is_quantized():
    linear, layer = learned_layer()
    weight, _, transform = layer()
    whole = undo(weight, transform)
    x = torch.randn(5, 64)
    assert torch.allclose(x @ whole.weight.T + whole.bias, linear(x), atol=1e-4)


def test_scale_and_shift_are_learned_and_shared_by_layers_with_the_same_input(fit):
    _, layers = fit(Memory(), transformation=True, transformation_lr=0.02, num_steps=8)
    gate, up, down = (layers[f"model.layers.0.mlp.{name}_proj"].transform for name in ("gate", "up", "down"))
    assert torch.equal(gate.scale, up.scale)
    assert torch.equal(gate.shift, up.shift)
    for transform in (gate, down):
        assert (transform.scale != 1).any()
        assert (transform.shift != 0).any()


def test_a_transformation_alone_lowers_the_loss(fit):
    progress = Memory()
    only = {"clipping_lr": 1e-30, "transformation": True, "transformation_lr": 5e-3}
    fit(progress, Objective.parse(8, {"int2": 1.0}), num_steps=40, **only)
    losses = [float(record["int2"]) for record in progress.records if record["block"] == 0]
    assert sum(losses[-8:]) < 0.97 * sum(losses[:8])


def test_a_step_that_is_not_finite_is_skipped_and_too_many_end_the_run(fit, monkeypatch):
    original, calls = omniquant.BlockFit.distance, []

    def sometimes(self, output, target):
        calls.append(1)
        return original(self, output, target) * (float("nan") if len(calls) <= 3 else 1.0)

    monkeypatch.setattr(omniquant.BlockFit, "distance", sometimes)
    progress = Memory()
    _, layers = fit(progress, max_skipped_steps=1)
    assert progress.records[-1]["skipped"] == 0
    assert progress.records[3]["skipped"] == 1
    assert all(nested.at(Slice(2)).weight.isfinite().all() for nested in layers.values())


def test_every_step_logs_the_loss_of_every_slice(fit):
    progress = Memory()
    fit(progress)
    assert len(progress.records) == 2 * 4
    assert set(progress.records[0]) == {
        *("block", "step", "lr", "loss", "int8", "int4", "int2", "skipped"),
        *("clipping/high", "clipping/low"),
        *("gradient_norm/int8", "gradient_norm/int4", "gradient_norm/int2"),
    }
    assert 0 < progress.records[0]["gradient_norm/int8"] < progress.records[0]["gradient_norm/int2"]
    assert 0.9 < progress.records[0]["clipping/high"] < 1
    assert progress.ticks[-1] == (2, 2)


def test_bfloat16_products_train_too(fit):
    _, layers = fit(Memory(), compute_dtype="bfloat16")
    assert next(iter(layers.values())).at(Slice(2)).weight.isfinite().all()


def test_a_loss_that_is_not_finite_stops_with_the_blocks_name(fit, monkeypatch):
    monkeypatch.setattr(omniquant.BlockFit, "distance", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(
        FloatingPointError, match="block 0, step 2: loss or gradient is not finite, as in 2 steps before"
    ):
        fit(Memory(), max_skipped_steps=2)
