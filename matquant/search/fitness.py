"""The loss that searches minimize: the distance of a checkpoint, read at some width in every layer, from the model.

It is a Kullback-Leibler divergence on calibration text, per token, from the next-token distribution of the unquantized
model.  The `top_k` most likely tokens of that distribution count one by one, all others as one bucket.  It is kept in
8 top_k bytes a token (at 64: 8 MB for 16k tokens, whatever the vocabulary); the logits of one batch are in memory
besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matquant.codes.nested import NestedWeight, write_layer
from matquant.errors import NotFiniteError
from matquant.notation import Slice


class Teacher(NamedTuple):
    """The unquantized model's most likely next tokens and their log-probabilities, for every token of the text."""

    log_probabilities: Float[Tensor, "sequences tokens top"]
    tokens: Int[Tensor, "sequences tokens top"]


class Fitness:
    """Measures assignments of slices to layers in one model, of which it rewrites only the layers that change."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, NestedWeight],
        text: Int[Tensor, "sequences tokens"],
        *,
        top_k: int,
        batch_size: int,
    ) -> None:
        """`model` still has its own, unquantized weights."""
        self.model, self.layers, self.text, self.batch_size = model, layers, text, batch_size
        self.written: dict[str, Slice] = {}
        self.teacher = self._read_teacher(top_k)

    def _read_teacher(self, top_k: int) -> Teacher:
        batches = [_most_likely(self._logits(batch), top_k) for batch in self.text.split(self.batch_size)]
        return Teacher(*(torch.cat(parts) for parts in zip(*batches, strict=True)))

    def switch(self, slices: Mapping[str, Slice]) -> int:
        """Writes the layers whose slice is not the one in the model; returns how many."""
        changed = [name for name in self.layers if self.written.get(name) != slices[name]]
        for name in changed:
            write_layer(self.model, name, self.layers[name], slices[name])
            self.written[name] = slices[name]
        return len(changed)

    def forget(self) -> None:
        """Makes the next assignment write every layer, whatever the model holds now."""
        self.written.clear()

    @torch.no_grad()
    def loss(self, slices: Mapping[str, Slice], share: float = 1.0) -> float:
        """The mean divergence per token, on the first `share` of the sequences."""
        self.switch(slices)
        number = max(1, math.ceil(share * len(self.text)))
        total = 0.0
        for start in range(0, number, self.batch_size):
            part = slice(start, min(start + self.batch_size, number))
            teacher = Teacher(*(kept[part] for kept in self.teacher))
            total += divergence(teacher, self._logits(self.text[part])).sum().item()
        if not math.isfinite(total):
            raise NotFiniteError("the logits that a search compares are not finite; set readout.dtype=float32")
        return total / self.text[:number].numel()

    @torch.no_grad()
    def _logits(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        device = next(self.model.parameters()).device
        return self.model(input_ids=tokens.to(device), use_cache=False).logits


def _most_likely(logits: Float[Tensor, "batch tokens vocabulary"], top_k: int) -> Teacher:
    """The teacher's part for one batch, on the CPU."""
    rows = [row.float().log_softmax(-1).topk(min(top_k, row.shape[-1])) for row in logits]
    return Teacher(
        torch.stack([row.values for row in rows]).cpu(), torch.stack([row.indices for row in rows]).int().cpu()
    )


def divergence(teacher: Teacher, logits: Float[Tensor, "batch tokens vocabulary"]) -> Float[Tensor, "batch tokens"]:
    """KL of two distributions over the teacher's most likely tokens and one bucket for all others; never negative.

    With all tokens among the most likely it is the full divergence; with fewer a lower bound of it.
    """
    rows = []
    for expected, index, row in zip(teacher.log_probabilities, teacher.tokens, logits, strict=True):
        expected = expected.to(row.device).double()
        given = row.float().log_softmax(-1).gather(-1, index.to(row.device).long()).double()
        kept = (expected.exp() * (expected - given)).sum(-1)
        rest, given_rest = (_rest(one) for one in (expected, given))
        rows.append(kept + rest.exp() * (rest - given_rest))
    return torch.stack(rows).float()


def _rest(log_probabilities: Float[Tensor, "tokens top"]) -> Float[Tensor, " tokens"]:
    """log(1 - sum p), held above the rounding of float32."""
    return torch.log((1 - log_probabilities.exp().sum(-1)).clamp(min=1e-7))
