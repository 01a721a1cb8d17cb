"""Fits and scores on every device of this machine, and arithmetic on a GPU that is not there, by fake tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu import agreement, exact
from evaluation.tasks.rows import Reach, attention_mask
from evaluation.text.perplexity import block_nats
from matquant.codes.nested import NestedWeight, Transform, materialize, nest, read_slices, write_layer
from matquant.codes.planes import sliced_planes, to_planes
from matquant.codes.quantizers import Grid, LearnableClipping, minmax_grid, weight_range
from matquant.codes.sliced import sliced
from matquant.config.cell import GridSpec
from matquant.notation import Plan, Slice
from matquant.serving.engines.humming_layout import pack
from matquant.serving.nested.packed import PackedLinear
from tests.fake_card import fake_card

SPECS = [
    GridSpec(group_size=8),
    GridSpec(group_size=8, symmetric=True, headroom="int4"),
    GridSpec(group_size=8, zero="aligned_int2", scale_dtype="bfloat16"),
    GridSpec(zero="rounded", scale_dtype="float16"),
]
PARTS = [Slice(8), Slice(3), Slice(2, extra_precision=True)]


@pytest.mark.parametrize("name", agreement.FITS)
def test_a_fit_leaves_its_codes_beside_the_model_and_they_are_read_there(name, device):
    loaded = agreement.loaded(device)
    layers = agreement.FITS[name](loaded, agreement.text(16))
    assert {tensor.device.type for tensor in agreement.tensors(layers)} == {device.type}
    model = materialize(agreement.loaded(device).model, layers, Plan.parse("int3"))
    assert torch.cat(list(block_nats(model, agreement.text(16), batch_size=3))).isfinite().all()


def test_exact_arithmetic_is_that_of_the_cpu(device):
    lines = [line for what in (exact.read_outs, exact.grids, exact.planes) for line in what(device)]
    assert not [f"{line.what}: {line.failed}" for line in lines if line.failed]


def test_scores_are_those_of_the_cpu(device):
    assert not [line.failed for line in agreement.scores(device, 32) if line.failed]


# --- fake tensors: an operation that mixes devices is an error --------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with fake_card("cuda"):
        yield torch.device("cuda:0")


def on_gpu(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.device.type == "cuda" for tensor in tensors)


def stored(gpu: torch.device, transform: Transform | None = None) -> NestedWeight:
    grid = Grid(torch.rand(4, 2, device=gpu), torch.rand(4, 2, device=gpu))
    return NestedWeight(torch.zeros(4, 16, dtype=torch.uint8, device=gpu), grid, 8, transform)


def transforms(gpu: torch.device) -> list[Transform | None]:
    scale, shift, bias = (torch.ones(number, device=gpu) for number in (16, 16, 4))
    return [None, Transform(scale), Transform(scale, shift, bias)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@torch.no_grad()
def test_grids_and_what_training_reads_stay_on_the_gpu(gpu, spec):
    weight = torch.randn(4, 16, device=gpu)
    clipping = LearnableClipping(weight, 8, spec, 4.0, 1.5)
    grid = clipping(weight_range(weight.detach(), spec))
    read = read_slices(weight, grid, PARTS, parent_bits=8, clamp="value")
    assert on_gpu(*grid, *read.values(), *clipping.parameters())
    nested = nest(weight, minmax_grid(weight.detach(), 8, spec), 8)
    assert on_gpu(nested.codes, *nested.grid)


@torch.no_grad()
def test_read_outs_planes_and_packed_layers_stay_on_the_gpu(gpu):
    for transform in transforms(gpu):
        for part in PARTS:
            nested = stored(gpu, transform)
            assert on_gpu(*nested.at(part), *sliced(nested, part).affine())
            codes = sliced_planes(to_planes(nested.codes, 8), part, parent_bits=8, columns=16)
            assert on_gpu(codes, pack(codes.repeat(1, 2), 4))
            packed = PackedLinear(nn.Linear(16, 4, device=gpu, dtype=torch.bfloat16), sliced(nested, part))
            answer = packed(torch.randn(3, 16, device=gpu, dtype=torch.bfloat16))
            assert on_gpu(packed.weight, answer)
            assert answer.dtype == torch.bfloat16


def test_a_layer_of_a_plain_model_is_overwritten_on_the_gpu(gpu):
    for transform in transforms(gpu):
        model = nn.ModuleDict({"one": nn.Linear(16, 4, bias=False, device=gpu, dtype=torch.bfloat16)})
        write_layer(model, "one", stored(gpu, transform), Slice(4))
        assert on_gpu(*model.parameters())


@torch.no_grad()
def test_a_packed_layer_moves_to_the_gpu_with_everything_that_it_holds(gpu):
    for transform in transforms(gpu)[:2]:  # fake tensors do not let a bias move
        weight = sliced(stored(gpu, transform).to(torch.device("cpu")), Slice(3))
        packed = PackedLinear(nn.Linear(16, 4, bias=False, device="cpu"), weight).to(gpu)
        assert on_gpu(packed.planes, *packed.grid, packed(torch.randn(2, 16, device=gpu)))


@pytest.mark.parametrize("reach", [Reach(), Reach(window=3), Reach(chunk=4)])
def test_the_mask_of_shared_contexts_is_made_on_the_gpu(gpu, reach):
    branches, positions = (torch.zeros(2, 9, dtype=torch.long, device=gpu) for _ in range(2))
    assert on_gpu(attention_mask(branches, positions, reach))
