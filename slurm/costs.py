"""The cost of the jobs of a plan: a row for each of them, and their sum."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from matquant.errors import UserError
from slurm import queue, wording
from slurm.jobs import Job
from slurm.plan import Item, Sweep


class Costs(NamedTuple):
    """A table of jobs, empty if the cost of none is known, and a line about all of them."""

    table: str
    total: str


def costs_of(sweep: Sweep, chosen: Iterable[Item], refused: Collection[str], *, whole: bool) -> Costs:
    """The cost of the chosen items; of a model that is not here and whose shape is not known, none is."""
    from slurm.estimate import cost_of  # torch takes seconds to import

    setup = sweep.study.setup
    rows = [["cell", "stage", "hours", "memory GB", "disk GB", ""]]
    hours = disk = 0.0
    unknown = 0
    room = setup.cluster.gpu_memory_gb if queue.is_slurm(setup.cluster) else None
    for item in chosen:
        try:
            cost = cost_of(Job(item.cell, setup, item.stage), item.plans or tuple(item.gaps))
        except UserError:  # its model is not there, which is why it is refused
            unknown += 1
            continue
        hours, disk = hours + cost.gpu_hours, disk + cost.disk_gb
        warning = f"more than cluster.gpu_memory_gb={room:g}" if room and cost.memory_gb > room else ""
        again = f"again after: {item.reason}" if item.state == "failed" else ""
        note = "refused, see below" if item.cell_id in refused else warning or again
        numbers = [f"{cost.gpu_hours:.2f}", f"{cost.memory_gb:.1f}", f"{cost.disk_gb:.2f}"]
        rows.append([item.cell_id, item.stage.name, *numbers, note])
    unit = "GPU-hours" if queue.is_slurm(setup.cluster) else "hours of a worker"
    known = len(rows) - 1
    parts = [
        f"{known} jobs, about {hours:.1f} {unit} at cluster.tflops={setup.cluster.tflops:g}, {disk:.1f} GB "
        "(estimates, good to a factor of two)",
        f"{unknown} jobs whose cost is not known, because their model is not here",
    ]
    total = "; and ".join(part for part, number in zip(parts, (known, unknown), strict=True) if number)
    return Costs(wording.table(rows, whole=whole) if known else "", total or "0 jobs")
