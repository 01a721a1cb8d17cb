"""QAT spread by FSDP2 over a world of one rank, beside the one process that trains without it.

Losses of every step, the checkpoint, peak memory and seconds a step.  Full: four blocks of Llama-3.2 1B's shapes with
random weights, in bfloat16 products.  There is no launcher: this process describes the world to itself.
"""

from __future__ import annotations

import copy
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import PreTrainedModel

from benchmarks.gpu.agreement import CPU, MATQUANT, TINY, unlike, unlike_codes
from benchmarks.gpu.guard import guarded
from benchmarks.gpu.lines import Line, Peak, Scale, holds, run_part
from matquant.algorithms import qat
from matquant.algorithms.progress import Layers
from matquant.codes.nested import nest
from matquant.codes.quantizers import weight_range
from matquant.config.cell import GridSpec, QATBase, RandomModel
from matquant.models.devices import deterministic
from matquant.models.loading import load_model
from matquant.parallel.distributed import ALONE, connected, leave
from matquant.parallel.sharding import full

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
LOSSES = 1e-4
"""The bound of a loss in nats: that of the tests for two ranks in float32 (docs/how_to/several_gpus.md)."""
CODES = 1e-3
"""The share of codes that may differ: AdamW's steps round differently on shards, by one unit in the last place."""


@dataclass(frozen=True)
class Sizes:
    """A model, its text, and the dtype of its weights and products."""

    config: Mapping[str, Any]
    length: int
    batch_size: int
    num_steps: int
    dtype: str
    vocabulary: int

    @property
    def base(self) -> QATBase:
        facts = {"num_steps": self.num_steps, "batch_size": self.batch_size, "warmup_steps": 2, "lr": 2e-4}
        return QATBase.model_validate({"kind": "qat", "compute_dtype": self.dtype, **facts})

    @property
    def grid(self) -> GridSpec:
        return GridSpec(group_size=32)


SMALL = Sizes(TINY, 32, 4, 3, "float32", 256)
FULL = Sizes(LLAMA_1B, 1024, 2, 6, "bfloat16", 128256)


@dataclass(frozen=True)
class Trained:
    """The losses, layers, seconds and peak memory of a training."""

    losses: list[float]
    layers: Layers
    seconds: float
    peak: int | None
    by_hand: Layers | None = None
    """The layers that one process makes of the same trained weights."""


def sharded(scale: Scale) -> Iterator[Line]:
    """Both ways of training, one after the other, from the same weights."""
    yield from guarded("one rank and one process", partial(_compared, SMALL if scale.small else FULL, scale.device))


def _compared(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    spec = RandomModel(kind="random", name="llama", architecture="llama", config=dict(sizes.config))
    model = load_model(spec, cache=Path(), dtype=sizes.dtype, device=CPU).model
    yield Line("parameters", sum(p.numel() for p in model.parameters()) / 1e6, "million")
    with deterministic(device):
        moved = copy.deepcopy(model)
        nn.Module.to(moved, device)
        alone = _train(moved, sizes, device)
        yield Line("one process: last loss", alone.losses[-1], "nats")
        with one_rank(device) as mesh, mock.patch.object(qat, "mesh_of", return_value=mesh):
            # As `train` does it: each rank reads the model on its CPU, and moves its shards.
            rank = _train(model, sizes, device)
    yield from _lines(rank, alone)


def _lines(rank: Trained, alone: Trained) -> Iterator[Line]:
    assert rank.by_hand is not None
    largest = max(abs(mine - theirs) for mine, theirs in zip(rank.losses, alone.losses, strict=True))
    steps = f"{len(rank.losses)} steps"
    yield holds("losses: largest difference", largest, LOSSES, unit="nats", note=steps)
    yield holds("one trained state: numbers unlike those of one process", unlike(rank.layers, rank.by_hand), 0)
    yield holds("after training: codes unlike one process's", unlike_codes(rank.layers, alone.layers), CODES)
    yield Line("seconds a step", rank.seconds, "s", alone.seconds, "one process")
    if rank.peak is not None and alone.peak is not None:
        yield Line("peak memory", rank.peak / 1e9, "GB", alone.peak / 1e9, "one process")


def _train(model: PreTrainedModel, sizes: Sizes, device: torch.device) -> Trained:
    peak = Peak(device)
    settings = qat.Settings(sizes.base, MATQUANT, "ffn", sizes.grid, 0, ALONE, device.type)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, sizes.vocabulary, (8, sizes.length), generator=draw)
    training = qat.Training(model, tokens, settings)
    losses, seconds = [], []
    for _ in range(sizes.num_steps):
        taken, metrics = _timed(training.advance, device)
        losses.append(float(metrics["loss"]))
        seconds.append(taken)
    most = peak.bytes()
    layers = {name: nested.to(CPU) for name, nested in training.layers().items()}
    return Trained(losses, layers, statistics.median(seconds[1:]), most, by_hand(training))


def _timed(act: Callable[[], Mapping[str, float | int]], device: torch.device) -> tuple[float, Mapping[str, float]]:
    """A step, which ends by reading its loss, and the seconds until the device has done all of it."""
    start = time.perf_counter()
    metrics = act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, metrics


@torch.no_grad()
def by_hand(training: qat.Training) -> Layers:
    """The layers out of the whole weights, gathered one by one."""

    def whole(weight: Tensor, clipping: Any) -> Any:
        return nest(weight, clipping(weight_range(weight, clipping.spec)), MATQUANT.parent_bits).to(CPU)

    return {path: whole(full(layer.linear.weight), layer.clipping) for path, layer in training.nested.items()}


@contextmanager
def one_rank(device: torch.device) -> Iterator[DeviceMesh]:
    """A world of one rank that is connected all the same, with itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    described = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # Without a network the name of this machine leads nowhere; its loopback is always there.
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    with mock.patch.dict(os.environ, {**loopback, **described}):
        if device.type == "cuda":
            torch.cuda.set_device(0)
        connected(ALONE)
        try:
            yield init_device_mesh(device.type, (1,))
        finally:
            leave(ALONE)


def main() -> None:
    run_part(sharded, __doc__)


if __name__ == "__main__":
    main()
