"""OmniQuant (arXiv:2308.13137) for nested codes: how to quantize, learned one transformer block at a time.

Weights stay as they are; what is learned is where each group's grid ends (learnable clipping) and, if asked for, an
equivalent transformation of every input channel (`matquant.algorithms.transformation`).  For block l the loss is,
summed over the terms of the objective,

    || F_l(W, X) - F_l(S(Q(W, c), r), X_r) ||^2

with X from the teacher's chain (unquantized blocks all the way) and X_r from the student's (finished blocks read at r),
so that a block also learns to repair what the blocks before it broke.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matquant.algorithms.calibration import (
    Activations,
    Chain,
    Hidden,
    Shelf,
    attend,
    block_outputs,
    capture,
    run_chain,
    suited_to,
)
from matquant.algorithms.importance import checked
from matquant.algorithms.inputs import Received, received_by
from matquant.algorithms.objective import Losses, nested_loss
from matquant.algorithms.progress import Layers, Progress
from matquant.algorithms.transformation import LearnableTransform, PublishedTransform, published_transforms
from matquant.codes.nested import Affine, GradientMeter, NestedWeight, Transform, bias_of, nest, read_slices, undo
from matquant.codes.quantizers import DTYPES, Grid, LearnableClipping, weight_range
from matquant.codes.range_search import Factors, search_factors
from matquant.config.cell import GridSpec, OmniQuantBase, Scope, SliceClamp
from matquant.errors import NotFiniteError
from matquant.models.layers.families import block_name, blocks, input_names, is_attention, linears
from matquant.notation import Objective, Slice

Transformation = LearnableTransform | PublishedTransform
DIAGNOSED_EVERY = 4  # steps; measuring gradients and clipping costs 5 % of the step that does it


@dataclass(frozen=True)
class Settings:
    """The settings of an OmniQuant fit."""

    base: OmniQuantBase
    objective: Objective
    scope: Scope
    grid: GridSpec
    seed: int
    shelf: Shelf = field(default_factory=Shelf)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.base.compute_dtype]

    def input_of(self, part: Slice) -> Slice:
        """The slice whose chain a slice is trained on: its own, or the parent (cheaper; the paper does not say)."""
        match self.base.student_input:
            case "own_slice":
                return part
            case "parent":
                return Slice(self.objective.parent_bits)
            case _:
                assert_never(self.base.student_input)

    def chain(self, block: nn.Module, hidden: Activations, arguments: Mapping[str, Any]) -> Chain:
        """The input of a block; its attention is computed once where nothing in it is quantized."""
        match self.scope:
            case "ffn":
                size = self.base.batch_size
                return attend(block, hidden, arguments, batch_size=size, dtype=self.dtype, shelf=self.shelf)
            case "ffn_attention":
                return Chain(hidden)
            case _:
                assert_never(self.scope)

    @property
    def looks_at_inputs(self) -> bool:
        """True if what is learned starts from the inputs of the layers."""
        return self.base.transformation == "published" or self.base.importance == "inputs"

    def learning_rate_factor(self, step: int) -> float:
        """The share of the learning rates that a step of a block takes."""
        match self.base.schedule:
            case "constant":
                return 1.0
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * step / self.base.num_steps))
            case _:
                assert_never(self.base.schedule)

    @property
    def inputs(self) -> tuple[Slice, ...]:
        """The read-outs that need a chain."""
        return tuple(dict.fromkeys(self.input_of(part) for part in self.objective.slices))


def fit(model: nn.Module, tokens: Int[Tensor, "sequences tokens"], settings: Settings, progress: Progress) -> Layers:
    """Learns the clipping of every linear layer in scope; the model's weights are not changed."""
    model.requires_grad_(False)
    batch_size, shelf = settings.base.batch_size, settings.shelf
    teacher, arguments = capture(model, tokens, batch_size=batch_size, dtype=settings.dtype, shelf=shelf)
    students = dict.fromkeys(settings.inputs, teacher)
    layers: dict[str, Any] = {}
    found = blocks(model)
    for index, (block, keywords) in enumerate(zip(found, arguments, strict=True)):
        with suited_to(block, settings.dtype):
            name = block_name(model, index)
            in_scope = linears(block, settings.scope)
            with received_by(in_scope if settings.looks_at_inputs else {}) as received:
                target = block_outputs(
                    block, teacher, keywords, batch_size=batch_size, dtype=settings.dtype, shelf=shelf
                )
            require_finite(name, received)
            if settings.base.transformation is True:
                for linear in in_scope.values():
                    bias_of(linear)  # a place for the transformation's bias
            chains = {part: settings.chain(block, hidden, keywords) for part, hidden in students.items()}
            fitting = BlockFit(index, block, keywords, chains, target, settings, received)
            finished = progress.resume(name, lambda fitting=fitting: fitting.run(progress, num_blocks=len(found)))
            layers |= {f"{name}.{path}": nested for path, nested in finished.items()}
            progress.tick(index + 1, len(found), name)
            teacher = target
            students = {part: fitting.advance(finished, part) for part in students}
    return layers


class LearnableLayer(nn.Module):
    """One linear layer with what is learned about its quantization; its own weight and bias stay as they are."""

    def __init__(
        self,
        linear: nn.Linear,
        settings: Settings,
        transform: Transformation | None,
        importance: Float[Tensor, " in"] | None = None,
    ) -> None:
        super().__init__()
        self.bits, self.spec = settings.objective.parent_bits, settings.grid
        self.clamp: SliceClamp = settings.base.slice_clamp
        self.weight = linear.weight.detach().float()
        self.bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        self.transform = transform
        start = settings.base.clipping_init
        if start == "search":
            start = self._searched(settings, importance)
        self.clipping = LearnableClipping(self.weight, self.bits, self.spec, start, settings.base.clipping_reach)

    @torch.no_grad()
    def _searched(self, settings: Settings, importance: Float[Tensor, " in"] | None) -> Factors:
        """The factors with the least error of the weights, transformed as they are at the start.

        An error in s W is an error in W divided by s, and its square counts by 1 / s^2.
        """
        weight, reach = self.weight, settings.base.clipping_reach
        if self.transform is not None:
            scale = self.transform(weight, self.bias).scale
            weight = weight * scale
            importance = (torch.ones_like(scale) if importance is None else importance) / scale.square()
        return search_factors(weight, settings.objective, self.spec, reach=reach, importance=importance)

    def forward(self) -> tuple[Float[Tensor, "out in"], Grid, Transform | None]:
        """The weight that is quantized, the grid it is quantized on, and the transformation that was applied to it."""
        if self.transform is None:
            return self.weight, self.clipping(), None
        transform = self.transform(self.weight, self.bias)
        weight = self.weight * transform.scale
        return weight, self.clipping(weight_range(weight, self.spec)), transform

    def read(self, slices: Sequence[Slice]) -> dict[Slice, Affine]:
        """The layer at several slices, differentiable in what is learned."""
        weight, grid, transform = self()
        values = read_slices(weight, grid, slices, parent_bits=self.bits, clamp=self.clamp)
        return {part: undo(value, transform) for part, value in values.items()}

    def stay_in_bounds(self) -> None:
        """Keeps what was learned where it has a meaning, after a step."""
        if self.transform is not None:
            self.transform.stay_in_bounds()

    @torch.no_grad()
    def nested(self) -> NestedWeight:
        _, grid, transform = self()
        return nest(self.weight, grid, self.bits, transform)


@dataclass(frozen=True)
class BlockFit:
    """One block's optimization problem."""

    index: int
    block: nn.Module
    arguments: Mapping[str, Any]
    chains: Mapping[Slice, Chain]
    target: Activations
    settings: Settings
    received: Mapping[str, Received] = field(default_factory=dict)
    """The inputs of the layers from the teacher's chain, where they are looked at."""

    def run(self, progress: Progress, *, num_blocks: int) -> Layers:
        """Learns how the block is quantized and returns its nested weights, by path inside the block."""
        base, layers = self.settings.base, self.learnable()
        optimizer = self._optimizer(layers)
        peaks = [group["lr"] for group in optimizer.param_groups]
        skipped = 0
        # One generator a block, so that a resumed run draws the batches an undisturbed one draws.
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + self.index)
        for step in range(base.num_steps):
            factor = self.settings.learning_rate_factor(step)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            batch = torch.randperm(len(self.target), generator=generator)[: base.batch_size]
            meter = GradientMeter() if step % DIAGNOSED_EVERY == 0 else None
            optimizer.zero_grad()
            losses = self.backward(layers, batch, meter)
            total, terms, is_finite = read_once(losses, finite(losses.total, layers))
            if is_finite:
                optimizer.step()
                for layer in layers.values():
                    layer.stay_in_bounds()
            else:
                skipped += 1
                if skipped > base.max_skipped_steps:
                    raise NotFiniteError(
                        f"block {self.index}, step {step}: loss or gradient is not finite, as in {skipped - 1} steps "
                        "before; lower base.clipping_lr"
                    )
            position = {"block": self.index, "step": step, "lr": base.clipping_lr * factor, "skipped": skipped}
            diagnostics = {} if meter is None else {**meter.take(), **clipping_factors(layers)}
            progress.log({**position, "loss": total, **terms, **diagnostics})
            if step % 8 == 0:
                progress.tick(self.index, num_blocks, f"block {self.index} step {step + 1}/{base.num_steps}")
        return {path: layer.nested() for path, layer in layers.items()}

    def learnable(self) -> dict[str, LearnableLayer]:
        """The layers in scope; those that share an input share its transformation."""
        found = linears(self.block, self.settings.scope)
        transforms = self._transforms(found)
        return {
            path: LearnableLayer(linear, self.settings, transforms.get(path), self._importance(path))
            for path, linear in found.items()
        }

    def _importance(self, path: str) -> Float[Tensor, " in"] | None:
        """The mean square of every input of a layer; None where all count alike, or the layer is not called."""
        if self.settings.base.importance == "plain" or path not in self.received:
            return None
        return checked(path, self.received[path].squares)

    def _transforms(self, found: Mapping[str, nn.Linear]) -> Mapping[str, Transformation]:
        """The transformation of every layer that has one, by path."""
        match self.settings.base.transformation:
            case False:
                return {}
            case True:
                names = input_names(found)
                shared: dict[str, LearnableTransform] = {}
                for path, linear in found.items():
                    shared.setdefault(names[path], LearnableTransform(linear.in_features, linear.weight.device))
                return {path: shared[names[path]] for path in found}
            case "published":
                in_attention = [path for path in found if is_attention(self.block, path)]
                return published_transforms(found, self.received, in_attention=in_attention)
            case _:
                assert_never(self.settings.base.transformation)

    def _optimizer(self, layers: Mapping[str, LearnableLayer]) -> torch.optim.Optimizer:
        base = self.settings.base
        clipping = [parameter for layer in layers.values() for parameter in layer.clipping.parameters()]
        transforms = {id(layer.transform): layer.transform for layer in layers.values() if layer.transform is not None}
        groups = [
            {"params": clipping, "lr": base.clipping_lr},
            {
                "params": [p for shared in transforms.values() for p in shared.parameters()],
                "lr": base.transformation_lr,
            },
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=base.weight_decay, eps=base.adam_epsilon
        )

    def backward(self, layers: Mapping[str, LearnableLayer], batch: Tensor, meter: GradientMeter | None) -> Losses:
        """The loss on a batch of sequences and its gradient, measured slice by slice if there is a meter."""
        objective, target = self.settings.objective, self.target.batch(batch)
        read = {path: layer.read(objective.slices) for path, layer in layers.items()}
        if meter is not None:
            for part, affine in ((part, affine) for slices in read.values() for part, affine in slices.items()):
                meter.watch(part, affine.weight)
        outputs = {
            part: self._run({path: slices[part] for path, slices in read.items()}, part, batch)
            for part in objective.slices
        }
        losses = nested_loss(objective, outputs, lambda _, output: self.distance(output, target), self.distance)
        losses.total.backward()
        return losses

    def _run(self, layers: Mapping[str, Affine], part: Slice, batch: Tensor) -> Hidden:
        """The block on a batch of the chain that a slice is trained on, with the given linear layers in place."""
        chain = self.chains[self.settings.input_of(part)].batch(batch)
        replaced = {f"{path}.weight": affine.weight for path, affine in layers.items()}
        replaced |= {f"{path}.bias": affine.bias for path, affine in layers.items() if affine.bias is not None}
        return run_chain(self.block, chain, self.arguments, dtype=self.settings.dtype, weights=replaced)

    def distance(
        self, output: Float[Tensor, "batch tokens hidden"], target: Float[Tensor, "batch tokens hidden"]
    ) -> Tensor:
        """`l2`, the paper's mean squared error, or `relative_l2`, each token's error relative to its own size.

        Some models give one token an activation a thousand times larger than all others; plain L2 then sees that token
        and nothing else.
        """
        error = (output - target).square()
        match self.settings.base.loss:
            case "l2":
                return error.mean()
            case "relative_l2":
                return (error.sum(-1) / target.square().sum(-1).clamp_min(1e-12)).mean()
            case _:
                assert_never(self.settings.base.loss)

    @torch.no_grad()
    def advance(self, layers: Layers, part: Slice) -> Activations:
        """The input of the next block under one read-out of this one."""
        read = {path: nested.at(part) for path, nested in layers.items()}
        batches = torch.arange(len(self.target)).split(self.settings.base.batch_size)
        return self.settings.shelf.keep((self._run(read, part, batch) for batch in batches), len(self.target))


def require_finite(block: str, received: Mapping[str, Received]) -> None:
    """Refuses inputs that are not finite, from which no start can be computed."""
    for path, of_layer in received.items():
        if not of_layer.largest.isfinite().all():
            raise NotFiniteError(f"the input of {block}.{path} is not finite; set base.compute_dtype=float32")


def clipping_factors(layers: Mapping[str, LearnableLayer]) -> dict[str, float]:
    """The share of the range between the extreme weights that grids keep on average, at their upper and lower ends."""
    with torch.no_grad():
        factors = [layer.clipping.factors() for layer in layers.values()]
        low, high = (torch.cat([factor.flatten() for factor in of_end]).mean() for of_end in zip(*factors, strict=True))
        at_high, at_low = torch.stack([high, low]).tolist()
    return {"clipping/high": at_high, "clipping/low": at_low}


def finite(loss: Tensor, layers: Mapping[str, nn.Module]) -> Tensor:
    """True if the loss and every gradient are finite, on their device."""
    gradients = [p.grad for layer in layers.values() for p in layer.parameters() if p.grad is not None]
    return torch.stack([part.isfinite().all() for part in (loss, *gradients)]).all()


def read_once(losses: Losses, is_finite: Tensor) -> tuple[float, dict[str, float], bool]:
    """The total, the terms and a yes or no as plain numbers: the one time in a step that the CPU waits for a GPU."""
    total, *terms, yes = torch.stack([losses.total.detach(), *losses.terms.values(), is_finite.float()]).tolist()
    return total, dict(zip(losses.terms, terms, strict=True)), yes == 1
