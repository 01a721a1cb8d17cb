"""The importance of a layer's inputs: the mean square of each over some text, the diagonal of GPTQ's Hessian.

One pass of the text through the unquantized model gives that of all layers.  GPTQ measures its own, block by block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matquant.config.cell import Scope
from matquant.errors import NotFiniteError
from matquant.models.layers.experts import is_of_expert
from matquant.models.layers.families import backbone, block_name, blocks, linears

log = logging.getLogger(__name__)

Importance = Float[Tensor, " features"]


@dataclass
class SquareSum:
    """The sum of the squares of what a layer has received so far, in float32, and the number of tokens.

    A row of zeros is no token: it is that of another expert (Llama-4).
    """

    squares: Importance
    tokens: Int[Tensor, ""]

    @classmethod
    def of(cls, linear: nn.Linear) -> SquareSum:
        """An empty sum on the layer's device."""
        zeros = torch.zeros(linear.in_features, device=linear.weight.device)
        return cls(zeros, zeros.new_zeros((), dtype=torch.long))

    def add(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        """A hook for before the layer's forward."""
        x = given[0].flatten(0, -2).float()
        self.squares += x.square().sum(0)
        self.tokens += x.any(-1).sum()

    def mean(self) -> Importance:
        """The mean square of all tokens; all zero without any."""
        return self.squares / self.tokens.clamp(min=1)


def alive(squares: Importance) -> Importance:
    """The importance of inputs that no token activates is the mean of the others', or 1 without any."""
    dead = squares == 0
    mean = squares.sum() / (~dead).sum().clamp(min=1)
    return torch.where(dead, torch.where(mean > 0, mean, 1.0), squares)


@torch.no_grad()
def importance_of(
    model: nn.Module,
    tokens: Int[Tensor, "sequences tokens"],
    scope: Scope,
    *,
    batch_size: int,
    report: Callable[[int], None] = lambda done: None,
) -> Mapping[str, Importance]:
    """The mean square of every input of the layers in scope, by the layers' paths in the model.

    An input that no text activates has none, so errors of its weights cost nothing; not so for an expert, or a layer
    that the pass does not call, whose inputs other text may activate.  `report` is told the number of sequences done.
    """
    found = {
        f"{block_name(model, index)}.{path}": linear
        for index, block in enumerate(blocks(model))
        for path, linear in linears(block, scope).items()
    }
    sums = {path: SquareSum.of(linear) for path, linear in found.items()}
    device, done = next(model.parameters()).device, 0
    with ExitStack() as stack:
        for path, linear in found.items():
            stack.callback(linear.register_forward_pre_hook(sums[path].add).remove)
        for batch in tokens.split(batch_size):
            backbone(model)(input_ids=batch.to(device), use_cache=False)
            done += len(batch)
            report(done)
    return {path: checked(path, total) for path, total in sums.items()}


def checked(path: str, total: SquareSum) -> Importance:
    """The importance of one layer's inputs; NotFiniteError where an activation is not a number."""
    squares = total.mean()
    if not squares.isfinite().all():
        raise NotFiniteError(f"the input of {path} is not finite; set model.dtype=float32 or base.importance=plain")
    if is_of_expert(path):
        return alive(squares)
    if total.tokens == 0:
        log.warning("the input of %s is not seen, so its weights count alike", path)
        return alive(squares)
    return squares
