"""Arithmetic that is the same on every device, bit for bit: read-outs, bit planes, packed layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu.lines import Line, holds
from matquant.codes.nested import NestedWeight, Transform, read_slices
from matquant.codes.planes import sliced_planes, to_planes
from matquant.codes.quantizers import Grid, minmax_grid
from matquant.codes.sliced import sliced
from matquant.config.cell import GridSpec, Zero
from matquant.notation import Slice
from matquant.serving.engines.humming_layout import pack
from matquant.serving.nested.packed import PackedLinear

CPU = torch.device("cpu")
PARENTS = (8, 4, 2)
GROUP = 32


def slices(parent_bits: int) -> list[Slice]:
    """Every slice of a parent, with and without its overflow bucket."""
    plain = [Slice(bits) for bits in range(1, parent_bits + 1)]
    return plain + [Slice(bits, extra_precision=True) for bits in range(1, parent_bits)]


def by_other_rules(parent_bits: int) -> list[Slice]:
    """Every narrower slice by the rules that are not Eq. 6, which stored codes and training read alike."""
    return [Slice(bits, rule=rule) for bits in range(1, parent_bits) for rule in ("floor", "centre")]


def all_codes(parent_bits: int, *, transformed: bool) -> NestedWeight:
    """A layer that has every code in every group of many odd grids."""
    draw, rows = torch.Generator().manual_seed(parent_bits), 64
    codes = torch.arange(256).remainder(1 << parent_bits).to(torch.uint8)
    shuffled = torch.stack([codes[torch.randperm(256, generator=draw)] for _ in range(rows)])
    scale = torch.rand(rows, 256 // GROUP, generator=draw) * 1e-2 + 1e-5
    zero = torch.rand(rows, 256 // GROUP, generator=draw) * (1 << parent_bits)
    # Without a shift: a shift's bias is a matrix product, whose sums have another order on every device.
    transform = Transform(torch.rand(256, generator=draw) + 0.5) if transformed else None
    return NestedWeight(shuffled, Grid(scale, zero), parent_bits, transform)


def unlike(one: Tensor, other: Tensor) -> int:
    """The number of elements of two tensors that are not the same; -0 and 0 are, NaN never is."""
    return int((one.to(CPU) != other.to(CPU)).sum())


def read_outs(device: torch.device) -> Iterator[Line]:
    """Weights that are read from stored codes."""
    number = 0
    for parent_bits in PARENTS:
        for transformed in (False, True):
            here = all_codes(parent_bits, transformed=transformed)
            there = here.to(device)
            for part in slices(parent_bits):
                number += unlike(there.at(part).weight, here.at(part).weight)
                number += unlike(sliced(there, part).affine().weight, here.at(part).weight)
            for part in by_other_rules(parent_bits):
                number += unlike(there.at(part).weight, here.at(part).weight)
    yield holds("read-outs of all codes at all slices: weights unlike the CPU's", number, 0)


def grids(device: torch.device) -> Iterator[Line]:
    """Grids of MinMax, what training reads on them, and its gradients as far as they are sums of nothing."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    kinds: tuple[tuple[bool, Zero], ...] = (
        (False, "real"),
        (True, "real"),
        (False, "rounded"),
        (False, "aligned_int2"),
    )
    specs = [
        GridSpec(group_size=GROUP, symmetric=symmetric, zero=zero, scale_dtype=dtype)
        for symmetric, zero in kinds
        for dtype in ("float32", "bfloat16")
    ]
    of_grid = of_weights = 0
    for spec in specs:
        for bits in PARENTS:
            here, there = minmax_grid(weight, bits, spec), minmax_grid(weight.to(device), bits, spec)
            of_grid += unlike(there.scale, here.scale) + unlike(there.zero, here.zero)
            same = Grid(here.scale.to(device), here.zero.to(device))
            parts = [*slices(bits), *by_other_rules(bits)]
            read = read_slices(weight.to(device), same, parts, parent_bits=bits)
            expected = read_slices(weight, here, parts, parent_bits=bits)
            of_weights += sum(unlike(read[part], expected[part]) for part in expected)
    yield holds("grids of MinMax: scales and zeros unlike the CPU's", of_grid, 0)
    yield holds("what training reads on one grid: weights unlike the CPU's", of_weights, 0)


def planes(device: torch.device) -> Iterator[Line]:
    """Bit planes, and layers that hold them."""
    of_planes = of_codes = of_layers = of_words = of_outputs = 0
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    for parent_bits in PARENTS:
        here = all_codes(parent_bits, transformed=False)
        there = here.to(device)
        mine, theirs = to_planes(there.codes, parent_bits), to_planes(here.codes, parent_bits)
        of_planes += sum(unlike(*pair) for pair in zip(mine, theirs, strict=True))
        for part in slices(parent_bits):
            codes = sliced_planes(mine, part, parent_bits=parent_bits, columns=256)
            of_codes += unlike(codes, sliced(here, part).codes)
            linear = nn.Linear(256, 64, bias=False, device=device)
            packed = PackedLinear(linear, sliced(there, part))
            of_layers += unlike(packed.weight, here.at(part).weight)
            expanded = nn.functional.linear(x.to(device), there.at(part).weight)
            with torch.no_grad():
                of_outputs += unlike(packed(x.to(device)), expanded)
            bits = sliced(here, part).num_bits
            of_words += unlike(pack(codes, bits), pack(codes.to(CPU), bits))
    yield holds("bit planes: bytes unlike the CPU's", of_planes, 0)
    yield holds("codes out of planes: unlike the CPU's", of_codes, 0)
    yield holds("packed layers: weights unlike the CPU's", of_layers, 0)
    yield holds("packed layers: outputs unlike those of expanded weights", of_outputs, 0)
    yield holds("words for Humming's kernels: unlike the CPU's", of_words, 0)
