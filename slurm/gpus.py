"""The GPUs of this machine by the names that CUDA_VISIBLE_DEVICES takes, and a share of them for each worker."""

from __future__ import annotations

import os
import re
from itertools import takewhile
from pathlib import Path

from matquant.config.setup import LocalCluster, Setup
from matquant.errors import UserError

NAME = re.compile(r"\d+|(GPU|MIG)-\S+")


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that are there for workers: those that CUDA_VISIBLE_DEVICES names, or all.

    Names are numbers or UUIDs.  CUDA reads up to the first that is neither, such as -1.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(takewhile(NAME.fullmatch, (part.strip() for part in named.split(","))))
    return tuple(map(str, range(len(list(Path("/dev").glob("nvidia[0-9]*"))))))


def share(cluster: LocalCluster, number: int, count: int) -> tuple[str, ...]:
    """The first GPUs of those of one worker."""
    first = number * cluster.gpus_per_worker
    return visible_gpus()[first : first + count]


def check_gpus(setup: Setup) -> None:
    """Refuses more workers than this machine has GPUs for: the others would take the CPU, and their numbers differ.

    A machine without GPUs is let pass: there all workers take the CPU.
    """
    if not isinstance(setup.cluster, LocalCluster):
        return
    workers, each, there = setup.cluster.workers, setup.cluster.gpus_per_worker, len(visible_gpus())
    if not there or workers * each <= there:
        return
    fitting = {"workers": max(1, there // each), "gpus_per_worker": min(each, there)}
    remedy = " ".join(f"cluster.{key}={n}" for key, n in fitting.items() if n != getattr(setup.cluster, key))
    raise UserError(
        f"{workers} worker{'s' * (workers > 1)} x {each} GPU{'s' * (each > 1)}, and this machine shows {there}; "
        f"set {remedy}"
    )
