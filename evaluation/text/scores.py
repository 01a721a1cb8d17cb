"""The numbers of one model on the held-out text, in one pass: log perplexity, and the divergence from a teacher."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from evaluation.results.metrics import KL, LOG_PPLX
from evaluation.tasks.scoring import Bar, wider
from evaluation.text.divergence import divergences, room_for, summarized
from evaluation.text.perplexity import log_perplexity, nats_of, read_blocks
from evaluation.text.teacher import Teacher
from matquant.errors import NotFiniteError
from matquant.models.layers.head import listening


class TextScores(NamedTuple):
    """Metrics with errors over blocks, and the same of each block, as columns."""

    metrics: dict[str, float]
    blocks: dict[str, list[Any]]


def score_text(
    model: PreTrainedModel,
    text: Int[Tensor, "blocks tokens"],
    teacher: Teacher | None,
    *,
    batch_size: int,
    description: str,
    bar: Bar,
) -> TextScores:
    """Reads the text once; `bar` is moved by one for each block."""
    # What is kept has its place before the first batch.  A small tensor that is made beside large ones, and outlives
    # them, splits the memory that they leave: with SmolLM2 a process grew to 7 GB in 320 blocks.
    nats = torch.empty(len(text), dtype=torch.float64)
    blocks = [] if teacher is None else room_for(text)
    done = 0
    with nullcontext() if teacher is None else listening(model) as listener:
        for read in read_blocks(model, text, batch_size=batch_size):
            batch = slice(done, done + len(read.targets))
            nats[batch] = nats_of(read)
            if not nats[batch].isfinite().all():
                raise _not_finite(nats[: batch.stop], description, model.dtype)
            if teacher is not None and listener is not None:
                for place, found in zip(blocks[batch], divergences(model, listener, teacher, done, read), strict=True):
                    for kept, values in zip(place, found, strict=True):
                        kept.copy_(values)
            bar.update(batch.stop - done)
            done = batch.stop
            del read  # its logits, before those of the next batch
    summary = log_perplexity(nats, text.shape[1] - 1)
    metrics = {LOG_PPLX: summary.mean, "num_tokens": float(summary.num_tokens)}
    if math.isfinite(summary.stderr):
        metrics[f"{LOG_PPLX}_stderr"] = summary.stderr
    columns = {"doc_id": list(range(len(text))), LOG_PPLX: summary.block_nats}
    if teacher is None:
        return TextScores(metrics, columns)
    measures, of_blocks = summarized(blocks, teacher)
    if not math.isfinite(measures[KL]):
        raise NotFiniteError(
            f"the divergence of {description} from the unquantized model is not finite; {wider(model.dtype)}, or set "
            "readout.divergence=false"
        )
    return TextScores({**metrics, **measures}, {**columns, **of_blocks})


def _not_finite(nats: Float[Tensor, " blocks"], description: str, dtype: torch.dtype) -> NotFiniteError:
    block = int(nats.isfinite().logical_not().nonzero()[0])
    return NotFiniteError(f"the logits of {description} are not finite on held-out text, block {block}; {wider(dtype)}")
