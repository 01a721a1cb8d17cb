"""Weights that contain each other: a parent code, its slices, and the two ways of reading them.

Training reads slices as differentiable functions of weights and grid (`read_slices`); evaluation reads them from stored
codes (`NestedWeight.at`) into a plain model (`materialize`).  Both are the same arithmetic in the same order, so that
what training sees is what evaluation sees, to the last bit in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, assert_never

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from matquant.codes.layouts import slices_of
from matquant.codes.quantizers import (
    FixedClipping,
    Grid,
    LearnableClipping,
    dequantize,
    grouped,
    quantize,
    weight_range,
)
from matquant.codes.slicing import slice_codes
from matquant.config.cell import SliceClamp
from matquant.notation import EQ_6, FULL, Plan, Slice


class Transform(NamedTuple):
    """OmniQuant's equivalent transformation of one linear layer (arXiv:2308.13137, Eq. 3), on the weight's side.

    X W + b = ((X - delta) / s) (s W) + b + delta W.  With s W quantized, the layer is still a plain linear one: its
    weight is Q(s W) / s and its bias b + delta (W - Q(s W) / s), so nothing has to be folded into a norm to evaluate
    it.  Without a shift the bias is the model's own.
    """

    scale: Float[Tensor, " in"]
    shift: Float[Tensor, " in"] | None = None
    bias: Float[Tensor, " out"] | None = None
    """b + delta W, which does not depend on the slice; there if there is a shift."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Transform:
        """The same transformation with every tensor changed in one way."""
        shift, bias = (None if part is None else change(part) for part in (self.shift, self.bias))
        return Transform(change(self.scale), shift, bias)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it has, by name."""
        return {name: part for name, part in self._asdict().items() if part is not None}


class Affine(NamedTuple):
    """A plain linear layer to be written into a model; without a bias, the model's own is left alone."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None = None


def undo(values: Float[Tensor, "out in"], transform: Transform | None) -> Affine:
    """The linear layer that transformed and quantized weights amount to."""
    if transform is None:
        return Affine(values)
    weight = values / transform.scale
    if transform.shift is None or transform.bias is None:
        return Affine(weight)
    return Affine(weight, transform.bias - weight @ transform.shift)


class NestedWeight(NamedTuple):
    """One linear layer as it is stored: parent codes and the grid that all of its slices share."""

    codes: UInt8[Tensor, "out in"]
    grid: Grid
    parent_bits: int
    transform: Transform | None = None

    def at(self, to: Slice) -> Affine:
        """The layer read at one slice: weights a * (S(q, r) - z), in float32, with the transformation undone."""
        return undo(dequantize(slice_codes(self.codes, to, parent_bits=self.parent_bits), self.grid), self.transform)

    def to(self, device: torch.device) -> NestedWeight:
        """The same layer on another device."""
        grid = Grid(*(part.to(device) for part in self.grid))
        transform = None if self.transform is None else self.transform.each(lambda part: part.to(device))
        return NestedWeight(self.codes.to(device), grid, self.parent_bits, transform)


def nest(
    weight: Float[Tensor, "out in"], grid: Grid, parent_bits: int, transform: Transform | None = None
) -> NestedWeight:
    """Quantizes a weight matrix on a finished grid, after its transformation if there is one."""
    if transform is not None:
        weight = weight * transform.scale
        transform = transform.each(Tensor.detach)
    codes = quantize(weight.detach(), grid, parent_bits).to(torch.uint8)
    return NestedWeight(codes, Grid(grid.scale.detach(), grid.zero.detach()), parent_bits, transform)


def read_slices(
    weight: Float[Tensor, "out in"],
    grid: Grid,
    slices: Sequence[Slice],
    *,
    parent_bits: int,
    clamp: SliceClamp = "bucket",
) -> dict[Slice, Float[Tensor, "out in"]]:
    """The weights of several slices as differentiable functions of the unquantized weight, the scale and the zero."""
    values = _ReadSlices.apply(weight, grid.scale, grid.zero, tuple(slices), parent_bits, clamp)
    return dict(zip(slices, values, strict=True))


class _ReadSlices(torch.autograd.Function):
    """Quantize, slice, dequantize with a straight-through estimator around quantize *and* slice.

    With u = w/a + z, forward is v_r = a * (S(round(clamp(u)), r) - z).  Backward takes round and shift as the identity
    and stops where a code is clamped, in the parent or in the slice (`SliceClamp` says from which code on); with m = 1
    where nothing was clamped, else 0:

        dv/dw = m        dv/da = S - z - m * w / a        dv/dz = -a * (1 - m)

    Written out, and for all slices at once, because autograd would keep a dozen copies of the weight matrix for each
    slice: reference/nested_reference.py is the same thing spelled with autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor,
        zero: Tensor,
        slices: tuple[Slice, ...],
        parent_bits: int,
        clamp: SliceClamp,
    ) -> tuple[Tensor, ...]:
        grid = Grid(scale, zero)
        ctx.save_for_backward(weight, scale, zero)
        ctx.slices, ctx.parent_bits, ctx.clamp = slices, parent_bits, clamp
        codes = quantize(weight, grid, parent_bits).to(torch.int16)
        return tuple(dequantize(slice_codes(codes, part, parent_bits=parent_bits), grid) for part in slices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] -- torch types it loosely
        weight, scale, zero = ctx.saved_tensors
        num_groups, top = scale.shape[1], 2**ctx.parent_bits - 1
        ratio = grouped(weight.float(), num_groups) / scale.unsqueeze(-1)
        position = ratio + zero.unsqueeze(-1)
        # Masks are floats, which torch multiplies several times faster than bool, and buffers are used again: on a CPU
        # fresh memory costs more than what is computed in it.
        inside = position.clamp(0, top).eq_(position)
        codes = position.round_().clamp_(0, top)
        integers = codes.to(torch.int16)
        passing, scratch = torch.empty_like(ratio), torch.empty_like(ratio)
        d_weight = torch.zeros_like(ratio) if ctx.needs_input_grad[0] else None
        d_scale, d_zero = torch.zeros_like(scale), torch.zeros_like(zero)
        for part, gradient in zip(ctx.slices, gradients, strict=True):
            if gradient is None:
                continue
            gradient = grouped(gradient, num_groups)
            torch.mul(gradient, inside, out=passing)
            if (highest := _highest_unclamped(part, ctx.parent_bits, ctx.clamp)) < top:
                passing.mul_(torch.le(codes, highest, out=scratch))
            if d_weight is not None:
                d_weight += passing
            total, passed = gradient.sum(-1), passing.sum(-1)
            sliced = scratch.copy_(slice_codes(integers, part, parent_bits=ctx.parent_bits))
            d_scale += sliced.mul_(gradient).sum(-1) - zero * total - passing.mul_(ratio).sum(-1)
            d_zero -= scale * (total - passed)
        return None if d_weight is None else d_weight.flatten(1).to(weight.dtype), d_scale, d_zero, None, None, None


def _highest_unclamped(part: Slice, parent_bits: int, clamp: SliceClamp) -> int:
    """The highest parent code that gradients do not take for clamped in a slice: of int2 223, or its top value 192.

    Only rounding half up has a bucket that a slice lacks.
    """
    dropped, top = parent_bits - part.bits, (1 << parent_bits) - 1
    if dropped == 0 or part.extra_precision:
        return top
    match clamp:
        case "bucket":
            return top - (1 << (dropped - 1)) if part.rule == EQ_6 else top
        case "value":
            return top + 1 - (1 << dropped) + ((1 << (dropped - 1)) if part.rule == "centre" else 0)
        case _:
            assert_never(clamp)


def bias_of(linear: nn.Module) -> nn.Parameter:
    """The bias of a linear layer; a layer without one gets a bias of zeros."""
    if linear.bias is None:
        weight = linear.get_parameter("weight")
        linear.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
    return linear.get_parameter("bias")


class GradientMeter:
    """The norm of the gradients that reach the weights through each slice: a diagnostic that costs one pass over them.

    All layers of a fit share one meter.
    """

    def __init__(self) -> None:
        self._squares: dict[Slice, list[Tensor]] = {}

    def watch(self, part: Slice, weight: Tensor) -> None:
        """Counts the gradient that will reach a weight read at one slice."""
        if weight.requires_grad:
            weight.register_hook(lambda gradient: self._add(part, gradient))

    def _add(self, part: Slice, gradient: Tensor) -> None:
        self._squares.setdefault(part, []).append(torch.linalg.vector_norm(gradient.detach()).square())

    def take(self) -> dict[str, float]:
        """The norms since the last call, named `gradient_norm/int2` and so on."""
        norms = [torch.stack(squares).sum().sqrt() for squares in self._squares.values()]
        names = [f"gradient_norm/{part}" for part in self._squares]
        self._squares = {}
        return dict(zip(names, torch.stack(norms).tolist(), strict=True)) if norms else {}


class NestedLinear(nn.Module):
    """A linear layer of a model in training: reads its weight at the slice that `read_at` sets, or whole."""

    def __init__(
        self,
        linear: nn.Linear,
        clipping: LearnableClipping | FixedClipping,
        meter: GradientMeter | None = None,
        clamp: SliceClamp = "bucket",
    ) -> None:
        super().__init__()
        self.linear, self.clipping, self.meter = linear, clipping, meter
        self.clamp: SliceClamp = clamp
        self.slice: Slice | None = None

    def grid(self) -> Grid:
        """The grid of the current weights; their end points are constants to the gradient."""
        return self.clipping(weight_range(self.linear.weight.detach(), self.clipping.spec))

    @property
    def weight(self) -> Tensor:
        """The weight at the slice; some models multiply by it themselves (Mamba's step size)."""
        if self.slice is None:
            return self.linear.weight
        part, bits = self.slice, self.clipping.bits
        weight = read_slices(self.linear.weight, self.grid(), [part], parent_bits=bits, clamp=self.clamp)[part]
        if self.meter is not None:
            self.meter.watch(part, weight)
        return weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if self.slice is None else F.linear(x, self.weight, self.bias)


@contextmanager
def read_at(model: nn.Module, part: Slice) -> Iterator[None]:
    """Lets every nested layer of a model read its weight at one slice."""
    layers = [module for module in model.modules() if isinstance(module, NestedLinear)]
    before = [layer.slice for layer in layers]
    for layer in layers:
        layer.slice = part
    try:
        yield
    finally:
        for layer, slice_before in zip(layers, before, strict=True):
            layer.slice = slice_before


def materialize(model: nn.Module, layers: Mapping[str, NestedWeight], plan: Plan) -> nn.Module:
    """Writes one read-out plan into a plain model, in place, and returns the model.

    Every quantized layer is overwritten whole, so plans can follow each other in any order in one model.
    """
    assert str(plan) != FULL, "a full read-out is the model before anything is written into it"
    slices = slices_of(plan, layers)
    for name, nested in layers.items():
        write_layer(model, name, nested, slices[name])
    return model


@torch.no_grad()
def write_layer(model: nn.Module, name: str, nested: NestedWeight, part: Slice) -> None:
    """Overwrites one linear layer of a plain model with what a slice reads."""
    linear = model.get_submodule(name)
    weight = linear.get_parameter("weight")
    if weight.shape != nested.codes.shape:
        raise ValueError(
            f"{name} is {tuple(weight.shape)} in the model and {tuple(nested.codes.shape)} in the checkpoint"
        )
    read = nested.at(part)
    weight.copy_(read.weight)
    if read.bias is not None:
        bias_of(linear).copy_(read.bias)
