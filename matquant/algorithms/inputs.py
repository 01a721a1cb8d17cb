"""The inputs of a block's linear layers, seen by hooks while the block runs on calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class Received:
    """The input of one linear layer over all tokens that reached it; a row of zeros is no token (Llama-4)."""

    number: int
    """The same for layers that receive the same tensor, and counted in the order in which inputs come."""
    largest: Float[Tensor, " in"]
    """The largest magnitude of every channel."""
    squares: Float[Tensor, " in"]
    """The sum of squares of every channel."""
    tokens: Tensor

    @classmethod
    def of(cls, number: int, x: Tensor) -> Received:
        """No token yet."""
        zeros = torch.zeros(x.shape[-1], device=x.device)
        return cls(number, zeros, zeros.clone(), torch.zeros((), dtype=torch.long, device=x.device))

    def add(self, x: Tensor) -> None:
        """Counts the tokens of one batch."""
        rows = x.detach().flatten(0, -2).float()
        if len(rows):
            self.largest = torch.maximum(self.largest, rows.abs().amax(0))
            self.squares += rows.square().sum(0)
            self.tokens += rows.any(-1).sum()

    @property
    def mean_square(self) -> Float[Tensor, " in"]:
        """The mean square of every channel; all zero without any token."""
        return self.squares / self.tokens.clamp(min=1)


@dataclass
class _Watch:
    """The inputs of some layers, and those of the first batch themselves, so that equal ones are known."""

    received: dict[str, Received] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def see(self, path: str, x: Tensor) -> None:
        if path not in self.received:
            number = next((number for number, other in enumerate(self.tensors) if other is x), len(self.tensors))
            if number == len(self.tensors):
                self.tensors.append(x)
            self.received[path] = Received.of(number, x)
        self.received[path].add(x)


@contextmanager
def received_by(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, Received]]:
    """Collects, for as long as the context lasts, the input of every layer that is called, in the order of calls.

    A layer that no token reaches is missing, and so is one whose weight the model multiplies by itself.
    """
    watch = _Watch()

    def seeing(path: str):
        return lambda _, given: watch.see(path, given[0])

    with ExitStack() as stack:
        for path, linear in layers.items():
            stack.callback(linear.register_forward_pre_hook(seeing(path)).remove)
        yield watch.received
        watch.tensors.clear()
