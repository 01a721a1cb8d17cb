"""The largest array of jobs that a cluster takes, as its controller says."""

from __future__ import annotations

import re
from collections.abc import Mapping

from matquant.config.setup import SlurmCluster
from slurm import queue

USUAL = 1000
"""The largest array where the controller does not say; SLURM's own default is 1001."""


def max_array_size(cluster: SlurmCluster) -> int:
    """The most elements of one array; 1 where a cluster takes no arrays."""
    sizes = (largest_array(queue.configuration()), cluster.max_array_size)
    return min((size for size in sizes if size is not None), default=USUAL)


def largest_array(configuration: Mapping[str, str]) -> int | None:
    """The most elements of an array that a cluster's configuration allows; None if it does not say."""
    size = re.fullmatch(r"\d+", configuration.get("MaxArraySize", ""))
    tasks = re.search(r"\bmax_array_tasks=(\d+)", configuration.get("SchedulerParameters", ""))
    sizes = [int(found[0] if found is size else found[1]) for found in (size, tasks) if found is not None]
    return max(1, min(sizes)) if sizes else None
