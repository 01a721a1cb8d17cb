"""The device of a cell, and the cost of a dtype there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, assert_never

import torch
import torch.utils.deterministic

from matquant.codes.quantizers import DTYPES

if TYPE_CHECKING:
    from matquant.config.setup import Setup

log = logging.getLogger(__name__)
SHAPE = (1024, 576, 1536)
"""The shape of the product that is timed: 1024 tokens through a linear layer of SmolLM2."""
WARM_UP_S, TIMED_S = 0.1, 0.4
"""Seconds of products before the clock starts, while threads start and caches fill, and seconds that are timed.

One product alone is too short to time: the scheduler may stop it.
"""
WORTH_A_WORD = 1.5
"""The ratio of a product's time to its time in float32 that is worth a warning."""


def pick_device(setup: Setup) -> torch.device:
    """The device that a setup names; `auto` is the GPU where there is one."""
    match setup.device:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cpu" | "cuda":
            return torch.device(setup.device)
        case _:
            assert_never(setup.device)


def repeatable(device: torch.device) -> None:
    """Makes a GPU compute the same bits in every run, and float32 products in float32; a CPU does so anyhow.

    Holds for the whole process.  An operation that has no such form on a GPU warns; so does the backward pass of
    attention, which takes its repeatable form in `deterministic` alone.  PyTorch's notes on reproducibility
    (https://pytorch.org/docs/stable/notes/randomness.html) say what each line is for.
    """
    if device.type != "cuda":
        return
    # cuBLAS reads it at its first product: eight buffers of 4 MB, as many bytes as torch gives it on a Hopper anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.are_deterministic_algorithms_enabled():  # a model that is loaded within `deterministic` keeps it
        torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False  # 10 bits of a factor: codes and losses would not be those of a CPU
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """The same for as long as the context lasts, attention's backward pass included: it is repeatable or an error.

    Asked only to warn, torch lets attention add up its gradients in the order in which they are done, and warns of it.
    Another operation without a repeatable form raises RuntimeError, which names it.
    """
    before = torch.get_deterministic_debug_mode()
    repeatable(device)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


class DtypeCost(NamedTuple):
    """Seconds of one product of SHAPE on this CPU, in a narrow dtype and in float32."""

    narrow: float
    float32: float


def product_speed(dtype: str) -> float:
    """Floating point operations a second of a matrix product on this CPU."""
    tokens, inputs, outputs = SHAPE
    return 2 * tokens * inputs * outputs / product_seconds(dtype)


def product_cost(dtype: str) -> DtypeCost:
    """A product in a dtype and in float32, timed on this CPU."""
    return DtypeCost(product_seconds(dtype), product_seconds("float32"))


@cache
def product_seconds(dtype: str) -> float:
    """The mean time of products on this CPU, after some that are not timed; the load by other processes is in it.

    Measured and not looked up: libraries emulate a dtype on one machine and have instructions for it on the next.
    """
    tokens, inputs, outputs = SHAPE
    x, weight = (torch.ones(rows, inputs, dtype=DTYPES[dtype]) for rows in (tokens, outputs))
    _repeat(lambda: torch.nn.functional.linear(x, weight), WARM_UP_S)
    return _repeat(lambda: torch.nn.functional.linear(x, weight), TIMED_S)


def _repeat(act: Callable[[], object], at_least_s: float) -> float:
    """Seconds of one call, averaged over as many as take `at_least_s` together."""
    start, number = time.perf_counter(), 0
    while number == 0 or time.perf_counter() - start < at_least_s:
        act()
        number += 1
    return (time.perf_counter() - start) / number


def say_what_it_costs(dtype: str, device: torch.device, option: str, whose: str) -> None:
    """Warns of a narrow dtype on a CPU that emulates it; `whose` says what another dtype makes it: another cell.

    Says nothing on a GPU, and nothing where the dtype is about as fast as float32.
    """
    if device.type != "cpu" or dtype == "float32":
        return
    cost = product_cost(dtype)
    times = cost.narrow / cost.float32
    if times >= WORTH_A_WORD:
        log.warning(
            "%s=%s: this CPU emulates %s; a matrix product takes %.1f times as long as in float32 (%.0f against %.0f "
            "ms). %s=float32 is faster here (%s)",
            *(option, dtype, dtype, times, 1e3 * cost.narrow, 1e3 * cost.float32, option, whose),
        )
