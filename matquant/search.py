"""Search for the widths of a checkpoint's layers under a budget, by how far its logits leave the unquantized model's.

    python -m matquant.search evolution@3 base=gptq bits=matquant

finds a plan for a checkpoint that is trained already and writes it to <paths.runs>/<cell id>/plans/evolution@3.json.
Strategies: evolution and dynamic_program, with a width for every block, or evolution_linear and dynamic_program_linear,
with one for every linear layer; pyramid for the paper's layout under the same budget.  `search=quick` and single values
(`readout.search.generations=20`) say how long.  A read-out names a plan by its strategy, and evaluation then searches
for what is missing, or by its path:

    python run.py base=gptq bits=matquant 'readout.plans=[int4, evolution@3, "runs/.../plans/pyramid@3.json"]'
"""

from __future__ import annotations

import argparse
import sys

from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.models.devices import pick_device, say_what_it_costs
from matquant.notation import Plan
from matquant.plan_search import run_search
from matquant.runs.files import read_json
from matquant.runs.stopping import interrupts_win, remember_interrupts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="what to search for, and effective bits of a quantized weight: evolution@3")
    parser.add_argument("overrides", nargs="*", help="the cell, as run.py takes it: base=gptq bits=matquant")
    options = parser.parse_args()
    remember_interrupts()
    try:
        study = load_study(options.overrides)
        if len(study.cells) != 1:
            raise UserError(f"{len(study.cells)} cells match; choose one with base=... bits=...")
        setup = study.setup
        say_what_it_costs(setup.readout.dtype, pick_device(setup), "readout.dtype", "another search")
        with interrupts_win():
            path = run_search(study.cells[0], setup, setup.readout.searched(Plan.parse(options.plan)))
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what is measured is on disk, the same command goes on from there")
    found = read_json(path)
    print(f"{path}: {found['effective_bits']:.3f} bits, loss {found['loss']:.5f}")


if __name__ == "__main__":
    main()
