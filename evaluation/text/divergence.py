"""The distance of a read-out from the unquantized model on held-out text, token by token and block by block.

Names and definitions are those of llama.cpp's `llama-perplexity --kl-divergence`: KLD, same top p, and the change Δp of
the probability of the right token.  Three things differ: distributions are exact here (llama.cpp stores 16 bits a
log-probability, and none below -16), every predicted token of a block counts (there those of its second half), and
errors are over blocks, which are independent, and not over tokens, which are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evaluation.results.metrics import (
    BASE_LOG_PPLX,
    KL,
    KL_99,
    KL_MAX,
    KL_MEDIAN,
    MEAN_DP,
    RMS_DP,
    SAME_TOP,
    error_name,
)
from evaluation.text.perplexity import Read
from evaluation.text.teacher import Teacher
from matquant.errors import UserError
from matquant.models.divergence import TokenDivergence, compare
from matquant.models.layers.head import Listener, logits_of

LOGITS = 2**25
"""The most logits that are compared at once: 128 MB in float32, of which six are in memory."""
ALIKE = {torch.float32: 1e-3}
"""Nats a token by which a teacher's file may differ from its own reading; rounding makes 1e-6 of them."""
ROUGHLY_ALIKE = 0.02
"""The same for dtypes of 16 bits."""


@torch.no_grad()
def divergences(
    model: nn.Module, listener: Listener, teacher: Teacher, first: int, read: Read
) -> Iterator[TokenDivergence]:
    """The tokens of each block of a batch that a model has just read; `first` is the number of its first block."""
    for block, (logits, targets) in enumerate(zip(read.logits, read.targets, strict=True), start=first):
        hidden = teacher.hidden[block : block + 1][0].to(logits.device)
        pieces, at_once = [], max(1, LOGITS // logits.shape[-1])
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            expected = logits_of(model, hidden[part], listener.output_type)
            pieces.append(compare(expected, logits[part], targets[part]))
        found = TokenDivergence(*(torch.cat(parts).cpu() for parts in zip(*pieces, strict=True)))
        _require_alike(teacher, block, found, model)
        yield found


def room_for(text: Int[Tensor, "blocks tokens"]) -> list[TokenDivergence]:
    """A place for the tokens of each block, in memory of all blocks together."""
    blocks, tokens = len(text), text.shape[1] - 1
    kl, log_p, log_q = torch.empty(3, blocks, tokens)
    same_top = torch.empty(blocks, tokens, dtype=torch.bool)
    return [TokenDivergence(*parts) for parts in zip(kl, same_top, log_p, log_q, strict=True)]


def _require_alike(teacher: Teacher, block: int, found: TokenDivergence, model: nn.Module) -> None:
    """Refuses a teacher whose hidden states do not give what it found when it read the text."""
    recorded, now = teacher.nats[block].item(), -found.log_p.double().mean().item()
    if not abs(now - recorded) <= ALIKE.get(next(model.parameters()).dtype, ROUGHLY_ALIKE):
        raise UserError(
            f"{teacher.name} is not what the unquantized model made of the text: block {block} has {now:.4f} nats a "
            f"token and was read with {recorded:.4f}; delete it, and the same command makes it again"
        )


def summarized(blocks: list[TokenDivergence], teacher: Teacher) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The metrics of a text, with errors over blocks, and the same of each block."""
    documents = _transposed([_measures(block) for block in blocks])
    documents[BASE_LOG_PPLX] = teacher.nats.tolist()
    tokens = TokenDivergence(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
    metrics: dict[str, float] = {}
    for name, value in {**_measures(tokens), BASE_LOG_PPLX: teacher.log_pplx}.items():
        metrics[name] = value
        if name in (KL, SAME_TOP, MEAN_DP, BASE_LOG_PPLX) and math.isfinite(error := _stderr(documents[name])):
            metrics[error_name(name)] = error
    squares = [value**2 for value in documents[RMS_DP]]
    if metrics[RMS_DP] > 0 and math.isfinite(error := _stderr(squares)):
        metrics[error_name(RMS_DP)] = error / (2 * metrics[RMS_DP])  # of a root, to first order
    return metrics, documents


def _measures(tokens: TokenDivergence) -> dict[str, float]:
    """The measures of some tokens.  A percentile between two values lies on the line between them."""
    kl = tokens.kl.double()
    change = tokens.log_q.double().exp() - tokens.log_p.double().exp()
    median, last = np.quantile(kl.numpy(), [0.5, 0.99]).tolist()
    return {
        KL: kl.mean().item(),
        KL_MEDIAN: median,
        KL_99: last,
        KL_MAX: kl.max().item(),
        SAME_TOP: tokens.same_top.double().mean().item(),
        RMS_DP: change.square().mean().sqrt().item(),
        MEAN_DP: change.mean().item(),
    }


def _transposed(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _stderr(values: list[float]) -> float:
    """The standard error of a mean over blocks; NaN of a single one."""
    found: Float[Tensor, " blocks"] = torch.tensor(values, dtype=torch.float64)
    return found.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
