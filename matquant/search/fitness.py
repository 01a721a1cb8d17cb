"""The loss that searches minimize: the distance of a checkpoint, read at some width in every layer, from the model.

It is a Kullback-Leibler divergence on calibration text, per token, from the next-token distribution of the unquantized
model.  The `top_k` most likely tokens of that distribution count one by one, all others as one bucket.  It is kept in
8 top_k bytes a token (at 64: 8 MB for 16k tokens, whatever the vocabulary); the logits of one batch are in memory
besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from matquant.codes.nested import NestedWeight, write_layer
from matquant.errors import NotFiniteError
from matquant.models.divergence import TopTokens, bucketed, most_likely
from matquant.notation import Slice


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

    def _read_teacher(self, top_k: int) -> TopTokens:
        batches = [most_likely(self._logits(batch), top_k) for batch in self.text.split(self.batch_size)]
        return TopTokens(*(torch.cat(parts) for parts in zip(*batches, strict=True)))

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
        sums: list[Tensor] = []  # read once, at the end: no batch waits for the one before it
        for start in range(0, number, self.batch_size):
            part = slice(start, min(start + self.batch_size, number))
            teacher = TopTokens(*(kept[part] for kept in self.teacher))
            sums.append(bucketed(teacher, self._logits(self.text[part])).sum())
        total = sum(torch.stack(sums).tolist())
        if not math.isfinite(total):
            raise NotFiniteError("the logits that a search compares are not finite; set readout.dtype=float32")
        return total / self.text[:number].numel()

    @torch.no_grad()
    def _logits(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        device = next(self.model.parameters()).device
        return self.model(input_ids=tokens.to(device), use_cache=False).logits
