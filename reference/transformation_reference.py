"""Slow, obvious twin of `matquant.algorithms.transformation`: scales folded into a Llama block by OmniQuant's rules.

What it computes is what the published code's `smooth_ln_fcs_temporary`, `smooth_fc_fc_temporary` and
`smooth_q_k_temporary` compute, in our own words and without shifts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def smooth_start(tokens: Tensor, weight: Tensor) -> list[float]:
    """max|x|^0.5 / (max w)^0.5 of every input channel, with both kept at 1e-5 or more; never below 1e-2."""
    starts = []
    for channel in range(weight.shape[1]):
        largest = max(abs(x.item()) for x in tokens[:, channel])
        reach = max(w.item() for w in weight[:, channel])
        starts.append(max(1e-2, max(1e-5, largest) ** 0.5 / max(1e-5, reach) ** 0.5))
    return starts


@torch.no_grad()
def folded(
    block: Any, *, qkv: Tensor, out: Tensor, fc1: Tensor, qk: Tensor, quantized: Callable[[Tensor], Tensor]
) -> nn.Module:
    """A copy of a Llama block with scales folded into its norms and into v_proj, and then its weights quantized."""
    block = copy.deepcopy(block)
    attention, network = block.self_attn, block.mlp
    block.input_layernorm.weight /= qkv
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight *= qkv
    block.post_attention_layernorm.weight /= fc1
    for linear in (network.gate_proj, network.up_proj):
        linear.weight *= fc1
    attention.v_proj.weight /= out[:, None]
    attention.o_proj.weight *= out
    attention.q_proj.weight /= qk[:, None]
    attention.k_proj.weight *= qk[:, None]
    for linear in block.modules():
        if isinstance(linear, nn.Linear):
            linear.weight.copy_(quantized(linear.weight))
    return block
