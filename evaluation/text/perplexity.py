"""Log perplexity: the mean negative log-likelihood of the next token, in nats, on fixed blocks of held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

LOGITS = 2**28
"""The most logits of one batch, 1 GB in float32, where a single block has no more."""


class LogPerplexity(NamedTuple):
    """Nats per predicted token; the standard error is over blocks, which are the independent pieces of text."""

    mean: float
    stderr: float
    num_tokens: int
    block_nats: list[float]


def log_perplexity(nats: Float[Tensor, " blocks"], tokens_per_block: int) -> LogPerplexity:
    """Summarizes the negative log-likelihood of each block, in nats per token."""
    spread = nats.std().item() / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    return LogPerplexity(nats.mean().item(), spread, len(nats) * tokens_per_block, nats.tolist())


@torch.no_grad()
def block_nats(
    model: nn.Module, blocks: Int[Tensor, "blocks tokens"], *, batch_size: int
) -> Iterator[Float[Tensor, " batch"]]:
    """The mean negative log-likelihood of tokens 2..n of every block given those before it, batch by batch."""
    for read in read_blocks(model, blocks, batch_size=batch_size):
        nats = nats_of(read)
        del read  # its logits, before those of the next batch
        yield nats


class Read(NamedTuple):
    """A batch of blocks that a model has read: the logits of tokens 2..n, in its own dtype, and these tokens."""

    logits: Float[Tensor, "batch tokens vocabulary"]
    targets: Int[Tensor, "batch tokens"]


@torch.no_grad()
def read_blocks(model: nn.Module, blocks: Int[Tensor, "blocks tokens"], *, batch_size: int) -> Iterator[Read]:
    """Reads blocks batch by batch; the same text is always cut into the same batches."""
    device = next(model.parameters()).device
    for batch in blocks.split(min(batch_size, blocks_at_once(model, blocks.shape[1]))):
        batch = batch.to(device)
        yield Read(model(input_ids=batch, use_cache=False).logits[:, :-1], batch[:, 1:])


def nats_of(read: Read) -> Float[Tensor, " batch"]:
    """The mean negative log-likelihood of each block."""
    # Block by block, in float32: bfloat16 sums lose digits, and a whole batch of logits in float32 is large.
    blocks = zip(read.logits, read.targets, strict=True)
    return torch.stack([F.cross_entropy(row.float(), targets) for row, targets in blocks]).double().cpu()


def blocks_at_once(model: nn.Module, num_tokens: int) -> int:
    """The blocks whose logits fit into `LOGITS`, at least one: Gemma has 262 thousand for each token."""
    head = getattr(model, "lm_head", None)
    return max(1, LOGITS // (num_tokens * head.out_features)) if isinstance(head, nn.Linear) else LOGITS
