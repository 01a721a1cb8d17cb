"""The number of ranks that train together, known without torch (see `matquant.parallel.distributed`)."""

from __future__ import annotations

import os


def num_ranks() -> int:
    """The number of processes that train together, as the environment says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
