"""The inputs of a block's linear layers, seen by hooks while the block runs on calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from matquant.algorithms.importance import SquareSum


@dataclass
class Received:
    """The input of one linear layer over all tokens that reached it; a row of zeros is no token (Llama-4)."""

    number: int
    """The same for layers that receive the same tensor, and counted in the order in which inputs come."""
    largest: Float[Tensor, " in"]
    """The largest magnitude of every channel."""
    squares: SquareSum

    @classmethod
    def of(cls, number: int, linear: nn.Linear) -> Received:
        """No token yet."""
        squares = SquareSum.of(linear)
        return cls(number, torch.zeros_like(squares.squares), squares)

    def add(self, linear: nn.Module, x: Tensor) -> None:
        """Counts the tokens of one batch."""
        self.squares.add(linear, (x,))
        if x.numel():
            self.largest = torch.maximum(self.largest, x.detach().flatten(0, -2).abs().amax(0).float())


@dataclass
class _Watch:
    """The inputs of some layers, and those of the first batch themselves, so that equal ones are known."""

    received: dict[str, Received] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def see(self, path: str, linear: nn.Linear, x: Tensor) -> None:
        if path not in self.received:
            number = next((number for number, other in enumerate(self.tensors) if other is x), len(self.tensors))
            if number == len(self.tensors):
                self.tensors.append(x)
            self.received[path] = Received.of(number, linear)
        self.received[path].add(linear, x)


@contextmanager
def received_by(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, Received]]:
    """Collects, for as long as the context lasts, the input of every layer that is called, in the order of calls.

    A layer that no token reaches is missing, and so is one whose weight the model multiplies by itself.
    """
    watch = _Watch()

    def seeing(path: str):
        return lambda linear, given: watch.see(path, linear, given[0])

    with ExitStack() as stack:
        for path, linear in layers.items():
            stack.callback(linear.register_forward_pre_hook(seeing(path)).remove)
        yield watch.received
        watch.tensors.clear()
