"""Searches for the widths of a checkpoint's layers under a budget, and prints their bits and their loss."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.planning import preflight
from matquant.command.parsing import parse
from matquant.config.study import load_study
from matquant.disk import in_words
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.files import read_json
from matquant.runs.folder import RunDir
from matquant.runs.stopping import interrupts_win, remember_interrupts
from matquant.search.request import found_plan, require_text


def main(arguments: Sequence[str]) -> None:
    choices = parse("search", arguments).choices
    plans = [choice for choice in choices if isinstance(choice, Plan)]
    if not plans:
        raise UserError("no plan is named; type one before the overrides, such as evolution@3")
    remember_interrupts()
    study = load_study([choice for choice in choices if not isinstance(choice, Plan)])
    cell, setup = study.one_cell(), study.setup
    wanted = [setup.readout.plan_of(cell, plan) for plan in plans]
    require_text(cell)
    run = RunDir(setup.paths.runs, cell.id)
    if lacking := [plan for plan in wanted if found_plan(run, setup.readout, plan) is None]:
        preflight.check([study], lacking)
    from matquant.search.stage import search  # torch takes seconds to import

    with in_words(dict(setup.paths)), interrupts_win():
        paths = search(cell, setup, wanted)
    for path in paths.values():
        found = read_json(path)
        print(f"{path}: {found['effective_bits']:.3f} bits, loss {found['loss']:.5f}")
