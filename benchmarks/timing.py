"""The parts that all benchmarks share: SmolLM2's shapes with random weights, and times compared within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from matquant.algorithms.progress import Layers

SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def smollm2(num_blocks: int) -> LlamaConfig:
    """The shapes of SmolLM2-135M with fewer blocks."""
    return LlamaConfig(**{**SMOLLM2.to_dict(), "num_hidden_layers": num_blocks})


def median_seconds(actions: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """The median time of each action; they take turns, so that a slow minute of the machine is shared by all."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()  # not counted
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def print_ratios(seconds: Mapping[str, float], *, rival: str, unit: str = "s") -> None:
    """A line for each, with its ratio to the rival."""
    for name, taken in seconds.items():
        print(f"  {name:52} {taken:9.4f} {unit} {taken / seconds[rival]:6.2f}x")


class NoProgress:
    """`Progress` that keeps nothing."""

    def resume(self, piece: str, compute: Callable[[], Layers]) -> Layers:
        return compute()

    def load(self, state: Mapping[str, Tensor]) -> bool:
        return False

    def save(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        pass

    def log(self, metrics: Mapping[str, Any]) -> None:
        pass

    def tick(self, done: int, total: int, note: str) -> None:
        pass
