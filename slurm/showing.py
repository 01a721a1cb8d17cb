"""The plan of a launch as it is printed: states, jobs with their cost, and what is not submitted."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from evaluation.identity import identity_refusals
from evaluation.planning import preflight
from matquant.config.setup import SlurmCluster
from matquant.errors import UserError
from slurm import queue, wording
from slurm.jobs import Job
from slurm.plan import Item, Sweep
from slurm.sbatch.environment import unused
from slurm.sbatch.parameters import replacements


class ShownPlan(NamedTuple):
    """The items to submit, the refused cells with their reasons, and a line about the cost."""

    chosen: Sequence[Item]
    refused: Mapping[str, str]
    cost: str


def show_plan(sweep: Sweep, wants: Callable[[Item], bool], *, is_dry: bool, whole: bool) -> ShownPlan:
    """Prints the state, the jobs to submit with their cost, and the refused cells.

    A dry run prints the cost of refused cells too: what is missing here may be there where the jobs will run.
    """
    print(wording.overview(sweep))
    chosen = [item for item in sweep.items if wants(item)]
    # Of all cells: the results of one that is done are no results of other weights.
    refused = identity_refusals(list({item.cell_id: item.cell for item in sweep.items}.values()), sweep.study.setup)
    cost = "0 jobs"
    if chosen:
        cells = {item.cell_id: item.cell for item in chosen}
        refused |= preflight.refusals(list(cells.values()), sweep.study.setup)
        costed = without_orphans(sweep, chosen)
        chosen = without_orphans(sweep, [item for item in chosen if item.cell_id not in refused])
        table, cost = costs_of(sweep, costed if is_dry else chosen, refused, whole=whole)
        if table:
            print(f"\n{table}\n\n{cost}")
        if queue.is_slurm(sweep.study.setup.cluster):
            _say_what_does_not_count(sweep.study.setup.cluster)
    if theirs := wording.owned(sweep.of("running", "queued", "failed")):
        print(f"\n{theirs}")
    left = [item for item in sweep.of("failed") if not wants(item)]
    if refused or left:
        print("\nnot submitted:")
        for cell_ids, reason in wording.shared(refused):
            print(f"{cell_ids}: {reason}")
        if left:
            print(wording.failures(left, whole=whole))
    if not chosen:
        print("\nnothing to submit")
    return ShownPlan(chosen, refused, cost)


def _say_what_does_not_count(cluster: SlurmCluster) -> None:
    """Prints the settings that others take the place of."""
    for sentence in replacements(cluster):
        print(sentence)
    if names := unused(os.environ, cluster):
        print(f"not used of the environment: {' '.join(names)} (cluster.* says what jobs ask for)")


def without_orphans(sweep: Sweep, chosen: Sequence[Item]) -> list[Item]:
    """The chosen items without those that cannot start in this launch; a later launch submits them.

    The stage before such an item has failed; or, on SLURM, a process works on it, for which no job can wait.
    """
    kept: dict[tuple[str, str], Item] = {}
    waits = not queue.is_slurm(sweep.study.setup.cluster)  # the launcher stays, and waits for running stages
    for item in chosen:  # of each cell in the order of its stages
        before = sweep.leads_to(item)
        under_way = before is not None and ((waits and before.state == "running") or sweep.job_before(item) is not None)
        if before is None or under_way or (before.cell_id, before.stage.name) in kept:
            kept[item.cell_id, item.stage.name] = item
    return list(kept.values())


class Costs(NamedTuple):
    """A table of jobs, empty if the cost of none is known, and a line about all of them."""

    table: str
    total: str


def costs_of(sweep: Sweep, chosen: Iterable[Item], refused: Collection[str], *, whole: bool) -> Costs:
    """The cost of the chosen items; of a model that is not here and whose shape is not known, none is."""
    from slurm.estimate import cost_of, named_speed  # torch takes seconds to import

    setup = sweep.study.setup
    rows = [["cell", "stage", "hours", "memory GB", "disk GB", ""]]
    hours = disk = 0.0
    unknown = 0
    room = setup.cluster.gpu_memory_gb if queue.is_slurm(setup.cluster) else None
    for item in chosen:
        try:
            cost = cost_of(Job(item.cell, setup, item.stage), item.plans or item.gaps)
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
        f"{known} jobs, about {hours:.1f} {unit} {named_speed(setup)}, {disk:.1f} GB "
        "(estimates, good to a factor of two)",
        f"{unknown} jobs whose cost is not known, because their model is not here",
    ]
    total = "; and ".join(part for part, number in zip(parts, (known, unknown), strict=True) if number)
    return Costs(wording.table(rows, whole=whole) if known else "", total or "0 jobs")
