"""Nested weights: what training sees is what evaluation sees, and gradients arrive where they should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from matquant.codes.nested import NestedWeight, materialize, nest, read_slices
from matquant.codes.quantizers import Grid, LearnableClipping
from matquant.config.cell import GridSpec, SliceClamp
from matquant.notation import Plan, Slice
from reference.nested_reference import read_slice

SLICES = [
    Slice(8),
    Slice(6),
    Slice(4),
    Slice(3),
    Slice(2),
    Slice(2, extra_precision=True),
    Slice(3, rule="floor"),
    Slice(2, rule="centre"),
]


def example(seed: int = 0, *, group_size: int | None = 8, parent_bits: int = 8, init: float = 1.0):
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    return weight, LearnableClipping(weight, parent_bits, GridSpec(group_size=group_size), init)


@pytest.mark.parametrize("part", SLICES, ids=str)
@pytest.mark.parametrize("group_size", [None, 8])
def test_what_training_sees_is_what_evaluation_sees(part, group_size, device):
    weight, clipping = example(group_size=group_size)
    weight, clipping = weight.to(device), clipping.to(device)
    clipping.ends = type(clipping.ends)(*(end.to(device) for end in clipping.ends))
    training = read_slices(weight, clipping(), [part], parent_bits=8)[part]
    assert torch.equal(nest(weight, clipping(), 8).at(part).weight, training)


@pytest.mark.parametrize("clamp", ["bucket", "value"])
@given(seed=st.integers(0, 10_000), parent_bits=st.integers(2, 8), init=st.floats(-1, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_equal_the_twin_spelled_with_autograd(clamp, seed, parent_bits, init, data):
    width = st.builds(Slice, st.integers(1, parent_bits), st.booleans()).filter(
        lambda s: s.bits < parent_bits or not s.extra_precision
    ) | st.builds(Slice, st.integers(1, parent_bits - 1), rule=st.sampled_from(["floor", "centre"]))
    parts = data.draw(st.lists(width, min_size=1, max_size=4, unique=True))
    weight, clipping = example(seed, parent_bits=parent_bits, init=init)
    weight.requires_grad_()
    trained = [weight, *clipping.parameters()]
    upstream = [torch.randn(8, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(parts))]

    fast = read_slices(weight, clipping(), parts, parent_bits=parent_bits, clamp=clamp)
    slow = {part: read_slice(weight, clipping(), part, parent_bits=parent_bits, clamp=clamp) for part in parts}
    assert all(torch.equal(fast[part], slow[part]) for part in parts)

    def gradients(read):
        return torch.autograd.grad(
            sum((read[part] * up).sum() for part, up in zip(parts, upstream, strict=True)), trained
        )

    for ours, reference in zip(gradients(fast), gradients(slow), strict=True):
        # Both are sums of 16 to 32 float32 products in different orders.
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", SLICES, ids=str)
def test_every_trained_width_sends_a_gradient_to_the_clipping(part):
    weight, clipping = example()
    read_slices(weight, clipping(), [part], parent_bits=8)[part].square().sum().backward()
    assert clipping.high_logit.grad is not None
    assert clipping.low_logit.grad is not None
    assert (clipping.high_logit.grad != 0).all()
    assert (clipping.low_logit.grad != 0).any()


def test_no_gradient_passes_where_a_code_is_clamped():
    weight = torch.tensor([[0.0, 0.5, 0.95, 1.0]], requires_grad=True)
    grid = Grid(torch.full((1, 1), 1 / 255), torch.zeros(1, 1))
    # At int2, codes from 224 up round to bucket 4 and are clipped to 3.
    read_slices(weight, grid, [Slice(2)], parent_bits=8)[Slice(2)].sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_a_slice_that_is_clamped_by_value_sends_its_range_the_gradient_of_an_explicit_grid():
    weight = torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def gradients(bits: int, scale: float, clamp: SliceClamp) -> tuple[Tensor, Tensor]:
        # Levels at -0.6, -0.2, 0.2 and 0.6, and weights beyond both ends.
        grid = Grid(torch.full((4, 1), scale), torch.full((4, 1), 0.6 / scale))
        for part in grid:
            part.requires_grad_()
        error = (read_slices(weight, grid, [Slice(2)], parent_bits=bits, clamp=clamp)[Slice(2)] - weight).square().sum()
        d_scale, d_zero = torch.autograd.grad(error, grid)
        return d_scale * scale, d_zero / scale

    explicit = gradients(2, 0.4, "bucket")
    for ours, wanted in zip(gradients(8, 0.4 / 64, "value"), explicit, strict=True):
        assert torch.allclose(ours, wanted, rtol=0.05, atol=0.05)
    assert not torch.allclose(gradients(8, 0.4 / 64, "bucket")[0], explicit[0], rtol=0.1)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def toy_layers(model: Toy) -> dict[str, NestedWeight]:
    layers = {}
    for name in ("first", "second"):
        weight = model.get_submodule(name).weight
        layers[name] = nest(weight, LearnableClipping(weight, 8, GridSpec(group_size=8), 4.0)(), 8)
    return layers


def test_reading_other_slices_in_between_leaves_the_int8_read_out_bit_identical(device):
    torch.manual_seed(0)
    model = Toy().to(device)
    layers, x = toy_layers(model.cpu()), torch.randn(4, 16)
    outputs = {}
    for label in ("int8", "int2", "int4", "int2+ep", "int8"):
        output = materialize(model, layers, Plan.parse(label))(x)
        if label in outputs:
            assert torch.equal(output, outputs[label])
        outputs[label] = output
    labels = list(outputs)
    assert all(not torch.equal(outputs[a], outputs[b]) for a in labels for b in labels if a < b)


def test_a_checkpoint_of_another_shape_is_refused_by_layer_name():
    model = Toy()
    layers = toy_layers(model)
    layers["second"] = layers["first"]
    with pytest.raises(ValueError, match=r"second is \(8, 8\) in the model and \(8, 16\) in the checkpoint"):
        materialize(model, layers, Plan.parse("int4"))
