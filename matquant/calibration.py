"""Activations, block by block: what each transformer block receives, without ever running the whole model.

Block-wise algorithms walk through a model once.  At every block they hold the hidden states of all calibration
sequences, [sequences, tokens, hidden], for the unquantized model (the teacher's chain) and for each quantized read-out
(the student's chains).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from matquant.models import attention, backbone, blocks, feed_forward, forward_replaced

Hidden = Float[Tensor, "sequences tokens hidden"]


class BlockInputs(NamedTuple):
    """What the first block receives, and the keyword arguments of every block.

    The arguments are kept per block: Gemma-2 alternates sliding and full attention masks.
    """

    hidden: Hidden
    arguments: list[dict[str, Any]]


@torch.no_grad()
def capture(model: nn.Module, tokens: Int[Tensor, "sequences tokens"], *, batch_size: int) -> BlockInputs:
    """Runs a model with its blocks skipped, and keeps what each block was called with."""
    arguments: list[dict[str, Any]] = []
    device, body = next(model.parameters()).device, backbone(model)

    def record(hidden: Tensor, **keywords: Any) -> Tensor:
        arguments.append({**keywords, "past_key_values": None, "use_cache": False})
        return hidden

    hidden = []
    # What the first block is given is the model's output with all blocks passing it through and no final norm.
    with ExitStack() as stack:
        for block in blocks(model):
            stack.enter_context(forward_replaced(block, record))
        stack.enter_context(forward_replaced(body.get_submodule("norm"), lambda states: states))
        body(input_ids=tokens[:1].to(device), use_cache=False)
        kept = arguments.copy()
        for batch in tokens.split(batch_size):
            hidden.append(body(input_ids=batch.to(device), use_cache=False).last_hidden_state.float())
    return BlockInputs(torch.cat(hidden), kept)


def run_block(
    block: nn.Module,
    hidden: Hidden,
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> Hidden:
    """One block on one batch, with some of its weights replaced; matrix products in `dtype`, the rest in float32."""
    with torch.autocast(hidden.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return functional_call(block, dict(weights or {}), (hidden,), dict(arguments)).float()


@torch.no_grad()
def block_outputs(
    block: nn.Module, hidden: Hidden, arguments: Mapping[str, Any], *, batch_size: int, dtype: torch.dtype
) -> Hidden:
    """One block on all sequences."""
    return torch.cat([run_block(block, batch, arguments, dtype=dtype) for batch in hidden.split(batch_size)])


class Chain(NamedTuple):
    """The hidden states that enter a block under one read-out and, where it is a constant, its attention's output."""

    hidden: Hidden
    attended: Hidden | None = None

    def batch(self, index: Tensor) -> Chain:
        return Chain(self.hidden[index], None if self.attended is None else self.attended[index])


@torch.no_grad()
def attend(
    block: nn.Module, hidden: Hidden, arguments: Mapping[str, Any], *, batch_size: int, dtype: torch.dtype
) -> Chain:
    """Computes the attention of a block once: with scope=ffn it is a constant of the block's optimization."""
    kept: list[Tensor] = []
    module = attention(block)
    original = module.forward

    def record(*positional: Any, **keywords: Any) -> Any:
        output, *rest = original(*positional, **keywords)
        kept.append(output)
        return output, *rest

    with forward_replaced(module, record), forward_replaced(feed_forward(block), lambda states: states):
        for batch in hidden.split(batch_size):
            run_block(block, batch, arguments, dtype=dtype)
    return Chain(hidden, torch.cat(kept))


def run_chain(
    block: nn.Module,
    chain: Chain,
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> Hidden:
    """A block, from its remembered attention output on if there is one."""
    if chain.attended is None:
        return run_block(block, chain.hidden, arguments, dtype=dtype, weights=weights)
    with forward_replaced(attention(block), lambda *positional, **keywords: (chain.attended, None)):
        return run_block(block, chain.hidden, arguments, dtype=dtype, weights=weights)
