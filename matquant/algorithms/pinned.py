"""Host memory that a GPU reads and writes by itself, while the CPU goes on (pinned, or page-locked, memory)."""

from __future__ import annotations

import logging
import math

import psutil
import torch
from torch import Tensor

log = logging.getLogger(__name__)
SHARE = 0.5
"""The part of the memory that is free which may be pinned: the system can never take pinned memory back."""


def host_memory(shape: tuple[int, ...], dtype: torch.dtype, *, device: torch.device) -> Tensor:
    """An empty tensor in host memory: pinned where `device` is a GPU and there is room, ordinary elsewhere."""
    if device.type == "cuda":
        # PyTorch's allocator rounds pinned memory up to a power of two.
        num_bytes = 1 << (math.prod(shape) * dtype.itemsize - 1).bit_length()
        if num_bytes <= SHARE * psutil.virtual_memory().available:
            try:
                return pinned(shape, dtype)
            except RuntimeError as error:  # the system allows less than it has: ulimit -l, a container
                log.warning("activations lie in ordinary host memory, which a GPU reads more slowly: %s", error)
    return torch.empty(shape, dtype=dtype)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def rows_of(states: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """`states[index]` on the device.  Each row is copied by itself: gathered first, they would no more be pinned."""
    rows = torch.empty((len(index), *states.shape[1:]), dtype=states.dtype, device=device)
    for row, number in zip(rows, index.tolist(), strict=True):
        row.copy_(states[number], non_blocking=True)
    return rows
