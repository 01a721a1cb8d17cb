"""A sweep in words: the number of stages in each state, a line for each stage that is not done, and the failures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import assert_never, get_args

from evaluation.board import duration
from evaluation.stages import Kind
from slurm.plan import STATES, Item, Sweep

MANY = 40  # rows that a person still reads


def overview(sweep: Sweep) -> str:
    """The number of stages in each state."""
    study = sweep.study
    stages = {kind: [item for item in sweep.items if item.stage.kind == kind] for kind in get_args(Kind)}
    lines = [f"{study.name}: {len({item.cell_id for item in sweep.items})} cells, {_results(sweep)}", ""]
    lines.append(f"{'':10}" + "".join(f"{state:>9}" for state in STATES))
    for stage, items in stages.items():
        if stage == "search" and not items:  # no plan names one
            continue
        counts = [sum(item.state == state for item in items) for state in STATES]
        lines.append(f"{stage:10}" + "".join(f"{count or '-':>9}" for count in counts))
    return "\n".join(lines)


def _results(sweep: Sweep) -> str:
    missing = sum(item.num_results for item in sweep.items)
    return f"{missing:,} results are missing" if missing else "every result is there"


def table(rows: Sequence[Sequence[str]], *, whole: bool) -> str:
    """Columns under their heads, as many rows as a person reads, or all."""
    shown = rows if whole or len(rows) <= MANY + 1 else rows[: MANY + 1]
    widths = [max(len(row[column]) for row in shown) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} more (--all shows them)")
    return "\n".join(lines)


def by_cell(items: Iterable[Item]) -> dict[str, list[Item]]:
    cells: dict[str, list[Item]] = {}
    for item in items:
        cells.setdefault(item.cell_id, []).append(item)
    return cells


def states(sweep: Sweep) -> list[list[str]]:
    """A row for each stage that is not done: cell, stage, state, progress, time, and a remark."""
    rows = [["cell", "stage", "state", "done", "elapsed", "left", ""]]
    for item in sweep.items:
        if item.state != "done":
            rows.append([item.cell_id, item.stage.name, item.state, *progress(item), _remark(item)])
    return rows


def progress(item: Item) -> tuple[str, str, str]:
    """Percent, time and time left of a stage at work; the time left follows from this process's own progress."""
    status = item.status
    if item.state != "running" or status is None or status.state != "running":
        return "", "", ""
    elapsed = time.time() - status.started
    if not status.total:
        return "", duration(elapsed), ""
    gained = status.done - (status.first or 0)
    spent = time.time() - (status.since or status.started)
    left = duration(spent / gained * (status.total - status.done)) if gained > 0 else ""
    return f"{100 * status.done / status.total:.0f} %", duration(elapsed), left


def _remark(item: Item) -> str:
    match item.state:
        case "failed":
            return f"{item.reason}"
        case "running":
            message = item.status.message if item.status is not None else None
            return (f"{message} ({item.note})" if item.owner else message) if message else item.note[:60]
        case "missing" if item.plans:
            return f"{len(item.plans)} plans"
        case "missing" if item.gaps:
            return f"{item.num_results} results"
        case "missing" | "queued" | "done":
            return item.note[:60]
        case _:
            assert_never(item.state)


def failures(items: Sequence[Item], *, whole: bool = False) -> str:
    """Every failure with its message, its log and what to do about it."""
    blocks = []
    for item in items:
        lines = [f"{item.cell_id} {item.stage.name}: {item.reason}", f"  {item.note}"]
        if item.submission is not None and item.submission.log and item.job is None:
            lines.append(f"  log: {item.submission.log}")
        if item.reason is not None:
            lines.append(f"  remedy: {item.what_to_do}")
        blocks.append("\n".join(lines))
    shown = blocks if whole else blocks[:MANY]
    if len(shown) < len(blocks):
        shown.append(f"... and {len(blocks) - len(shown)} more failures (--all shows them)")
    return "\n".join(shown)


def owned(items: Iterable[Item]) -> str:
    """The work of other users in a line for each of them; empty if there is none."""
    owners = Counter(item.owner for item in items if item.owner is not None)
    return "\n".join(
        f"{owner} is at work on {count} stages: they are not submitted again, and only {owner} can cancel them"
        for owner, count in sorted(owners.items())
    )


def shared(reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Reasons by cell id, each once, with the first of its cells and the number of others."""
    cells: dict[str, list[str]] = {}
    for cell_id, reason in reasons.items():
        cells.setdefault(reason, []).append(cell_id)
    for reason, (first, *others) in cells.items():
        yield f"{first} and {len(others)} more" if others else first, reason
