"""How a study is getting on: the state of every stage of every cell, and what to do about what failed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from matquant.config.study import Study, load_study
from matquant.errors import UserError
from slurm import wording
from slurm.plan import Item, Sweep, absolute, look

DESCRIPTION = "Shows how the jobs of a study are getting on, from what is on disk and what the scheduler says."
EXAMPLES = """
examples:
  python -m slurm.status experiment=table01 cluster=slurm
  python -m slurm.status experiment=table01 cluster=slurm --watch     again every few seconds, until all has ended
  python -m slurm.status experiment=table01 cluster=slurm --json      for scripts

Give the overrides that the study was launched with.  States: done, running, queued, failed (with the reason), missing.
"""
WATCH_S = 5.0
CLEAR = "\033[2J\033[H"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m slurm.status",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="experiment=..., cluster=..., any override")
    parser.add_argument("--watch", action="store_true", help="show it again every few seconds, until all has ended")
    parser.add_argument("--all", action="store_true", help="print every row of long tables")
    parser.add_argument("--json", action="store_true", help="one JSON object a stage")
    given = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    try:
        study = absolute(load_study(given.overrides))
        if given.watch:
            watch(study, whole=given.all)
        elif given.json:
            print("\n".join(json.dumps(facts(item)) for item in look(study).items))
        else:
            print(text(look(study), whole=given.all))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def watch(study: Study, *, whole: bool) -> None:
    """Prints the state again whenever it has changed, in place on a terminal; returns when nothing is at work."""
    before = ""
    while True:
        try:
            sweep = look(study)
        except UserError as error:  # a controller that restarts is no reason to stop watching
            print(f"{error}; asking again", file=sys.stderr)
            time.sleep(WATCH_S)
            continue
        if (now := text(sweep, whole=whole)) != before:
            print(f"{CLEAR if sys.stdout.isatty() else ''}{now}", flush=True)
            before = now
        if not sweep.of("running", "queued"):
            return
        time.sleep(WATCH_S)


def text(sweep: Sweep, *, whole: bool) -> str:
    """Everything that a person wants to know at a glance."""
    parts = [wording.overview(sweep)]
    rows = wording.states(sweep)
    if len(rows) > 1:
        parts.append(wording.table(rows, whole=whole))
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
        "missing_results": item.num_results,
        "status": None if item.status is None else asdict(item.status),
        "submission": None if item.submission is None else asdict(item.submission),
    }


if __name__ == "__main__":
    main()
