"""Searches for the widths of a checkpoint's layers under a budget, and prints their bits and their loss."""

from __future__ import annotations

from collections.abc import Sequence

from matquant.command.parsing import parse
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.files import read_json
from matquant.runs.stopping import interrupts_win, remember_interrupts
from matquant.search.stage import search


def main(arguments: Sequence[str]) -> None:
    choices = parse("search", arguments).choices
    plans = [choice for choice in choices if isinstance(choice, Plan)]
    if not plans:
        raise UserError("no plan is named; type one before the overrides, such as evolution@3")
    remember_interrupts()
    study = load_study([choice for choice in choices if not isinstance(choice, Plan)])
    cell, readout = study.one_cell(), study.setup.readout
    with interrupts_win():
        paths = search(cell, study.setup, [readout.searched(plan) for plan in plans])
    for path in paths.values():
        found = read_json(path)
        print(f"{path}: {found['effective_bits']:.3f} bits, loss {found['loss']:.5f}")
