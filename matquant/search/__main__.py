"""Search for the widths of a checkpoint's layers under a budget, by how far its logits leave the unquantized model's.

    python -m matquant.search evolution@3 base=gptq bits=matquant

finds a plan for a checkpoint that is trained already and writes it to <paths.runs>/<cell id>/plans/evolution@3.json;
several plans (`evolution@3 evolution@4`) share one model in memory.
Strategies: evolution and dynamic_program, with a width for every block, or evolution_linear and dynamic_program_linear,
with one for every linear layer; pyramid for the paper's layout under the same budget.  `search=quick` and single values
(`readout.search.generations=20`) say how long.  A read-out names a plan by its strategy, and run.py then searches for
what is missing before it evaluates, or by its path:

    python run.py base=gptq bits=matquant 'readout.plans=[int4, evolution@3, "runs/.../plans/pyramid@3.json"]'
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.notation import Plan
from matquant.runs.files import read_json
from matquant.runs.stopping import interrupts_win, remember_interrupts
from matquant.search.stage import search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", metavar="PLAN", help="what to search for, as STRATEGY@BITS: evolution@3")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the cell, as run.py takes it: base=gptq bits=matquant"
    )
    options = parser.parse_args()
    remember_interrupts()
    plans, overrides = divide([*options.plans, *options.overrides])
    try:
        if not plans:
            raise UserError("name what to search for, such as evolution@3, before the overrides")
        study = load_study(overrides)
        if len(study.cells) != 1:
            raise UserError(f"{len(study.cells)} cells match; choose one with base=... bits=...")
        readout = study.setup.readout
        with interrupts_win():
            paths = search(study.cells[0], study.setup, [readout.searched(Plan.parse(plan)) for plan in plans])
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what is measured is on disk, the same command goes on from there")
    for path in paths.values():
        found = read_json(path)
        print(f"{path}: {found['effective_bits']:.3f} bits, loss {found['loss']:.5f}")


def divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Plans, and overrides, which have an equals sign or take something away (~)."""
    plans = [text for text in arguments if "=" not in text and not text.startswith("~")]
    return plans, [text for text in arguments if text not in plans]


if __name__ == "__main__":
    main()
