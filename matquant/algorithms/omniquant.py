"""OmniQuant (arXiv:2308.13137) for nested codes: learnable clipping, one transformer block at a time.

Weights stay as they are; what is learned is where each group's grid ends.  For block l the loss is, summed over the
terms of the objective,

    || F_l(W, X) - F_l(S(Q(W, c), r), X_r) ||^2

with X from the teacher's chain (unquantized blocks all the way) and X_r from the student's (finished blocks read at r),
so that a block also learns to repair what the blocks before it broke.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matquant.algorithms import Layers, Progress
from matquant.calibration import Chain, Hidden, attend, block_outputs, capture, run_after_attention
from matquant.cell import GridSpec, OmniQuantBase
from matquant.models import block_name, blocks, linears
from matquant.nested import nest, read_slices
from matquant.notation import Objective, Slice
from matquant.objective import nested_loss
from matquant.quantizers import DTYPES, LearnableClipping


@dataclass(frozen=True)
class Settings:
    """What an OmniQuant fit is told."""

    base: OmniQuantBase
    objective: Objective
    scope: str
    grid: GridSpec
    seed: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.base.compute_dtype]

    def input_of(self, part: Slice) -> Slice:
        """Whose chain a slice is trained on: its own, or the parent's (the cheap choice; the paper does not say)."""
        return part if self.base.student_input == "own_slice" else Slice(self.objective.parent_bits)

    @property
    def inputs(self) -> tuple[Slice, ...]:
        """The read-outs that need a chain."""
        return tuple(dict.fromkeys(self.input_of(part) for part in self.objective.slices))


def fit(model: nn.Module, tokens: Int[Tensor, "sequences tokens"], settings: Settings, progress: Progress) -> Layers:
    """Learns the clipping of every linear layer in scope; the model's weights are not changed."""
    model.requires_grad_(False)
    batch_size = settings.base.batch_size
    teacher, arguments = capture(model, tokens, batch_size=batch_size)
    students = dict.fromkeys(settings.inputs, teacher)
    layers: dict[str, Any] = {}
    found = blocks(model)
    for index, (block, keywords) in enumerate(zip(found, arguments, strict=True)):
        name = block_name(index)
        target = block_outputs(block, teacher, keywords, batch_size=batch_size, dtype=settings.dtype)
        chains = {
            part: attend(block, hidden, keywords, batch_size=batch_size, dtype=settings.dtype)
            for part, hidden in students.items()
        }
        fitting = BlockFit(index, block, keywords, chains, target, settings)
        finished = progress.resume(name, lambda fitting=fitting: fitting.run(progress, num_blocks=len(found)))
        layers |= {f"{name}.{path}": nested for path, nested in finished.items()}
        progress.tick(index + 1, len(found), name)
        teacher = target
        students = {part: fitting.advance(finished, part) for part in students}
    return layers


@dataclass(frozen=True)
class BlockFit:
    """One block's optimization problem."""

    index: int
    block: nn.Module
    arguments: Mapping[str, Any]
    chains: Mapping[Slice, Chain]
    target: Hidden
    settings: Settings

    def run(self, progress: Progress, *, num_blocks: int) -> Layers:
        """Learns the clipping logits and returns the block's nested weights, by path inside the block."""
        base, objective = self.settings.base, self.settings.objective
        weights = {path: linear.weight for path, linear in linears(self.block, self.settings.scope).items()}
        clipping = nn.ModuleDict(
            {
                path.replace(".", "/"): LearnableClipping(
                    weight, objective.parent_bits, self.settings.grid, base.clipping_init
                )
                for path, weight in weights.items()
            }
        )
        # The gradient of a mean squared error reaches a single group's logit as 1e-8 or less: Adam's usual eps would
        # drown it, and the learning rate would mean something else in every block.
        optimizer = torch.optim.AdamW(
            clipping.parameters(), lr=base.clipping_lr, weight_decay=base.weight_decay, eps=1e-15
        )
        # One generator a block, so that a resumed run draws the batches an undisturbed one draws.
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + self.index)
        for step in range(base.num_steps):
            batch = torch.randperm(len(self.target), generator=generator)[: base.batch_size].to(self.target.device)
            grids = {path: clipping[path.replace(".", "/")]() for path in weights}
            read = {
                path: read_slices(weight, grids[path], objective.slices, parent_bits=objective.parent_bits)
                for path, weight in weights.items()
            }
            outputs = {
                part: run_after_attention(
                    self.block,
                    self.chains[self.settings.input_of(part)].batch(batch),
                    self.arguments,
                    dtype=self.settings.dtype,
                    weights={f"{path}.weight": slices[part] for path, slices in read.items()},
                )
                for part in objective.slices
            }
            target = self.target[batch]
            losses = nested_loss(
                objective,
                outputs,
                lambda _, output, target=target: self.distance(output, target),
                self.distance,
            )
            terms = {term: loss.item() for term, loss in losses.terms.items()}
            if not all(map(math.isfinite, terms.values())):
                raise FloatingPointError(f"block {self.index}, step {step}: the loss is not finite ({terms})")
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            progress.log({"block": self.index, "step": step, "loss": losses.total.item(), **terms})
            if step % 8 == 0:
                progress.tick(self.index, num_blocks, f"block {self.index} step {step + 1}/{base.num_steps}")
        with torch.no_grad():
            return {
                path: nest(weight, clipping[path.replace(".", "/")](), objective.parent_bits)
                for path, weight in weights.items()
            }

    def distance(
        self, output: Float[Tensor, "batch tokens hidden"], target: Float[Tensor, "batch tokens hidden"]
    ) -> Tensor:
        """`l2`, the paper's mean squared error, or `relative_l2`, each token's error relative to its own size.

        Some models give one token an activation a thousand times larger than all others; plain L2 then sees that token
        and nothing else.
        """
        error = (output - target).square()
        if self.settings.base.loss == "l2":
            return error.mean()
        return (error.sum(-1) / target.square().sum(-1).clamp_min(1e-12)).mean()

    @torch.no_grad()
    def advance(self, layers: Layers, part: Slice) -> Hidden:
        """What the next block receives under one read-out of this one."""
        weights = {f"{path}.weight": nested.at(part) for path, nested in layers.items()}
        chain, size = self.chains[part], self.settings.base.batch_size
        index = torch.arange(len(chain.hidden), device=chain.hidden.device)
        return torch.cat(
            [
                run_after_attention(
                    self.block, chain.batch(batch), self.arguments, dtype=self.settings.dtype, weights=weights
                )
                for batch in index.split(size)
            ]
        )
