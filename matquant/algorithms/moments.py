"""The second moments of what linear layers receive, counted in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Moments(NamedTuple):
    """H = 2/n sum x x^T of what a linear layer receives, and n, the number of tokens that it received."""

    hessian: Float[Tensor, "features features"]
    tokens: int


@dataclass
class Sum:
    """sum x x^T of what a layer has received so far, in float32, and the number of tokens.

    A row of zeros is no token: it is that of another expert (Llama-4).
    """

    moments: Float[Tensor, "features features"]
    tokens: Int[Tensor, ""]

    @classmethod
    def of(cls, linear: nn.Linear) -> Sum:
        """An empty sum on the layer's device."""
        zeros = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)
        return cls(zeros, zeros.new_zeros((), dtype=torch.long))

    def add(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        """A hook for before the layer's forward."""
        x = given[0].flatten(0, -2).float()
        self.moments.addmm_(x.T, x)
        self.tokens += x.any(-1).sum()

    def mean(self) -> Moments:
        """The moments of all tokens; all zero without any."""
        tokens = int(self.tokens)
        return Moments(self.moments.mul_(2 / max(1, tokens)), tokens)


def all_alive(hessian: Float[Tensor, "features features"]) -> Float[Tensor, "features features"]:
    """The moments of an expert, with unit moments of their own for inputs that none of its tokens activates.

    Left dead, their weights would be zero, which is right only for inputs that no text activates.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.sum() / (diagonal != 0).sum().clamp(min=1)
    diagonal.masked_fill_(diagonal == 0, mean.item() or 1.0)
    return hessian
