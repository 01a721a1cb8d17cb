"""Options of sbatch that a user names below cluster.sbatch: in one spelling, and none that the jobs depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Option = str | int | float | bool | None
TASKS = "one task a GPU is started; set cluster.gpus_per_node and cluster.nodes"
OURS: Mapping[str, str] = {
    "array": "cells are elements of an array; set cluster.array_parallelism or cluster.max_array_size",
    "dependency": "each stage of a cell waits for the one before it",
    "error": "logs lie below paths.runs/.jobs",
    "job-name": "jobs are found by their name; set comment instead",
    "kill-on-invalid-dep": "each stage of a cell waits for the one before it",
    "nodes": "nodes are those of base=qat; set cluster.nodes",
    "ntasks": TASKS,
    "ntasks-per-core": TASKS,
    "ntasks-per-gpu": TASKS,
    "ntasks-per-node": TASKS,
    "ntasks-per-socket": TASKS,
    "open-mode": "logs lie below paths.runs/.jobs",
    "output": "logs lie below paths.runs/.jobs",
    "parsable": "the number of a job is read from what sbatch says",
    "quiet": "the number of a job is read from what sbatch says",
    "signal": "a job is told to save before its limit; set cluster.signal_delay_s",
    "test-only": "nothing would be submitted; add --dry-run to the command",
    "wait": "add --wait to the command",
    "wrap": "the command of a job is matquant's",
}
"""The options that cannot be a user's, and for each the reason or the remedy."""


def options(given: Mapping[str, Any]) -> dict[str, Option]:
    """Options as sbatch spells them; ValueError for one that is named twice, or that is not for the user to set.

    `gpus_per_node`, `gpus-per-node` and `--gpus-per-node` are one; a list is joined with commas; null and false leave
    an option out.
    """
    found: dict[str, Option] = {}
    for typed, value in given.items():
        key = str(typed).strip().lstrip("-").replace("_", "-")
        if len(key) < 2:
            raise ValueError(f"{typed} is a short name; write the long one, such as exclude")
        if key in OURS:
            raise ValueError(f"{typed} is not for you to set: {OURS[key]}")
        if key in found:
            raise ValueError(f"{key} is named twice; leave one out")
        found[key] = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    if "no-requeue" in found:
        found["requeue"] = not found.pop("no-requeue")
    return found


def gpus(given: str) -> tuple[str | None, int]:
    """The type and the number of GPUs in `4`, `h100:4` or `gpu:h100:4`; ValueError for another text."""
    kind, _, count = given.removeprefix("gpu:").rpartition(":")
    if not count.isdigit() or ":" in kind:
        raise ValueError(f"gpus_per_node={given} is no number of GPUs; write 4, or with their type h100:4")
    return kind or None, int(count)
