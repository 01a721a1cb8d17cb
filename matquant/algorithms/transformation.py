"""OmniQuant's equivalent transformation (arXiv:2308.13137, Eq. 3), as the paper has it and as its code does.

    X W + b = ((X - delta) / s) (s W) + b + delta W

A layer quantizes s W, and is read with the transformation undone (`matquant.codes.nested.Transform`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matquant.algorithms.inputs import Received
from matquant.codes.nested import Transform

ALPHA = 0.5
LEAST_AT_START = 1e-5
LEAST_SCALE = 1e-2
"""The numbers of OmniQuant's code: `alpha`, the clamp of the start, and `truncate_number`."""
SPEAKERS = {"q_proj", "up_proj"}


class LearnableTransform(nn.Module):
    """A scale (as its logarithm) and a shift of every input channel, started at the identity."""

    def __init__(self, num_inputs: int, device: torch.device) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(num_inputs, device=device))
        self.shift = nn.Parameter(torch.zeros(num_inputs, device=device))

    def forward(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> Transform:
        """The transformation of a layer with this weight and bias."""
        return Transform(self.log_scale.exp(), self.shift, bias.float() + weight @ self.shift)

    def stay_in_bounds(self) -> None:
        """An exponential is positive as it is."""


class PublishedTransform(nn.Module):
    """A scale of every input channel as OmniQuant's code learns it: from SmoothQuant's start, without a shift.

    The code folds scales into what computes the input.  Two differences follow from undoing them in the layer itself.
    The scale of o_proj also divides the outputs of v_proj there, and one more scale passes between the outputs of
    q_proj and k_proj; a factor of a whole output changes no code of its grid, so both are left out.
    """

    def __init__(self, start: Float[Tensor, " in"]) -> None:
        super().__init__()
        self.scale = nn.Parameter(start.clone())
        self.stay_in_bounds()

    def forward(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> Transform:
        """The transformation of a layer, which leaves its bias alone."""
        return Transform(self.scale)

    @torch.no_grad()
    def stay_in_bounds(self) -> None:
        """Keeps every scale at least `LEAST_SCALE` away from zero, on its side."""
        least = torch.where(self.scale < 0, -LEAST_SCALE, LEAST_SCALE)
        self.scale.copy_(torch.where(self.scale.abs() < LEAST_SCALE, least, self.scale))


def published_transforms(
    layers: Mapping[str, nn.Linear], received: Mapping[str, Received], *, in_attention: Sequence[str]
) -> dict[str, PublishedTransform]:
    """The transformation of each layer that has one, shared by layers that receive the same tensor.

    None for a layer of the feed-forward network whose input another one computes, such as down_proj: its input is a
    product of gate and up, which the published code leaves alone.  None for a layer that no token reaches.
    """
    first_of: dict[str, int] = {}
    together: dict[int, list[str]] = {}
    for path, input_ in received.items():
        if not input_.squares.tokens:
            continue
        parent = path.rpartition(".")[0]
        if path in in_attention or first_of.setdefault(parent, input_.number) == input_.number:
            together.setdefault(input_.number, []).append(path)
    found = {}
    for paths in together.values():
        speaker = next((path for path in paths if path.rpartition(".")[2] in SPEAKERS), paths[0])
        shared = PublishedTransform(smooth_start(received[speaker].largest, layers[speaker].weight.detach().float()))
        found |= dict.fromkeys(paths, shared)
    return found


def smooth_start(largest: Float[Tensor, " in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, " in"]:
    """SmoothQuant's scale as OmniQuant's code has it: max|x|^alpha / (max w)^(1 - alpha) of every input channel.

    The code takes the largest weight and not the largest magnitude, of q_proj for q, k and v, and of up_proj for gate
    and up.
    """
    reach = weight.amax(0).clamp(min=LEAST_AT_START)
    return (largest.clamp(min=LEAST_AT_START) ** ALPHA / reach ** (1 - ALPHA)).clamp(min=LEAST_AT_START)
