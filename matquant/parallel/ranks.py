"""The number of ranks of this job, which is known without torch (see `matquant.parallel.distributed`)."""

from __future__ import annotations

import os


def num_ranks() -> int:
    """How many processes train together, as whoever started them says in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))
