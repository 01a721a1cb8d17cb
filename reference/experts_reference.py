"""A slow, obvious twin of `matquant.models.layers.experts`: token by token and expert by expert, in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mixture(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The weighted sum of each token's experts, down (silu(gate x) * up x), with matrices as [expert, out, in]."""
    answers = torch.zeros(x.shape, dtype=torch.float64)
    for token, state in enumerate(x.double()):
        for expert, weight in zip(chosen[token].tolist(), weights[token].tolist(), strict=True):
            gate, up = torch.mv(gate_up[expert].double(), state).chunk(2)
            answers[token] += weight * torch.mv(down[expert].double(), F.silu(gate) * up)
    return answers
