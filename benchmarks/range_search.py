"""The time in which the ends of every group's grid are searched for, by objective.

    python -m benchmarks.range_search       target: at most 1.5 s a layer for MatQuant {8, 4, 2} on 2 busy cores

The rival, in the same run, is one evaluation of what the search minimizes: the layer read at three slices on its
MinMax grid, as training reads it, and the squared errors.  The search evaluates some 340 grids.
"""

from __future__ import annotations

import torch

from benchmarks.timing import median_seconds, print_ratios
from matquant.codes.nested import read_slices
from matquant.codes.quantizers import minmax_grid
from matquant.codes.range_search import search_factors
from matquant.config.cell import GridSpec
from matquant.notation import Objective

OBJECTIVES = {
    "int2 Baseline": Objective.parse(2, {"int2": 1.0}),
    "Single Precision int2": Objective.parse(8, {"int2": 1.0}),
    "MatQuant {8, 4, 2}": Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0}),
    "MatQuant {8, 4, 2} + Extra Precision": Objective.parse(8, {"int8": 1.0, "int4+ep": 1.0, "int2+ep": 1.0}),
}


@torch.no_grad()
def main() -> None:
    weight, grid = 0.1 * torch.randn(576, 1536), GridSpec(group_size=64)
    nested = OBJECTIVES["MatQuant {8, 4, 2}"]

    def evaluate() -> None:
        read = read_slices(weight, minmax_grid(weight, 8, grid), nested.slices, parent_bits=8)
        torch.stack([(read[term.slice] - weight).square_().sum() * term.weight for term in nested.terms]).sum()

    searches = {
        f"search, {name}": lambda objective=objective: search_factors(weight, objective, grid, reach=1.5)
        for name, objective in OBJECTIVES.items()
    }
    print(f"down_proj of SmolLM2-135M, groups of 64, {torch.get_num_threads()} threads")
    rival = "one evaluation of {8, 4, 2} (rival)"
    print_ratios(median_seconds({rival: evaluate, **searches}, repeats=3), rival=rival)


if __name__ == "__main__":
    main()
