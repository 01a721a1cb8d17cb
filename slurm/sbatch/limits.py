"""The largest array of jobs that a cluster takes, as its controller says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from matquant.config.setup import SlurmCluster

TIMEOUT_S = 30
USUAL = 1000
"""The largest array where the controller does not say; SLURM's own default is 1001."""


def max_array_size(cluster: SlurmCluster, environment: Mapping[str, str]) -> int:
    """The most elements of one array; 1 where a cluster takes no arrays."""
    sizes = (largest_array(_configuration(environment)), cluster.max_array_size)
    return min((size for size in sizes if size is not None), default=USUAL)


def largest_array(configuration: str) -> int | None:
    """The most elements of an array that an answer of `scontrol show config` allows; None if it does not say."""
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", configuration, re.MULTILINE)
    tasks = re.search(r"\bmax_array_tasks=(\d+)", configuration)
    sizes = [int(found[1]) for found in (size, tasks) if found is not None]
    return max(1, min(sizes)) if sizes else None


def _configuration(environment: Mapping[str, str]) -> str:
    """The answer of `scontrol show config`; empty if there is none."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"],
            env=dict(environment),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
