"""The state of a study: that of every stage of every cell, and the remedy for every failure."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from matquant.command.parsing import parse
from matquant.config.study import Study, load_study
from matquant.errors import UserError
from slurm import wording
from slurm.plan import Item, Sweep, absolute, look

WATCH_S = 5.0
CLEAR = "\033[2J\033[H"


def main(arguments: Sequence[str]) -> None:
    given = parse("status", arguments)
    study = absolute(load_study(given.overrides))
    if given.watch:
        watch(study, whole=given.all)
    elif given.json:
        print("\n".join(json.dumps(facts(item)) for item in look(study).items))
    else:
        print(text(look(study), whole=given.all))


def watch(study: Study, *, whole: bool) -> None:
    """Prints the state again whenever it has changed, in place on a terminal; returns when nothing is at work."""
    before, sweep = "", look(study)  # where SLURM cannot be asked at all, this says so and ends
    while True:
        if (now := text(sweep, whole=whole)) != before:
            print(f"{CLEAR if sys.stdout.isatty() else ''}{now}", flush=True)
            before = now
        if not sweep.of("running", "queued"):
            return
        time.sleep(WATCH_S)
        try:
            sweep = look(study)
        except UserError as error:  # SLURM's controller may be restarting: watch on
            print(f"{error}; asking again", file=sys.stderr)


def text(sweep: Sweep, *, whole: bool) -> str:
    """The state of a sweep as text: an overview, open stages, failures."""
    parts = [wording.overview(sweep)]
    rows = wording.states(sweep)
    if len(rows) > 1:
        parts.append(wording.table(rows, whole=whole))
    if theirs := wording.owned(sweep.of("running", "queued", "failed")):
        parts.append(theirs)
    if failed := sweep.of("failed"):
        parts.append(wording.failures(failed, whole=whole))
    return "\n\n".join(parts)


def facts(item: Item) -> dict[str, Any]:
    """An item for a program to read."""
    return {
        "cell": item.cell_id,
        "stage": item.stage.name,
        "state": item.state,
        "reason": item.reason,
        "note": item.note,
        "remedy": item.what_to_do if item.state == "failed" else None,
        "tried_again": item.goes_on_unasked if item.state == "failed" else None,
        "owner": item.owner,
        "missing_results": item.num_results,
        "status": None if item.status is None else asdict(item.status),
        "submission": None if item.submission is None else asdict(item.submission),
    }
