"""The time in which one slice of a 135M checkpoint is read into a plain model.

    python -m benchmarks.materialize        target: at most 1 s on 2 cores

The rival, in the same run, is copying as many full-precision weights into the model: the least any way of switching
slices has to do.  Absolute times depend on the machine; the ratio should not.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from benchmarks.timing import SMOLLM2, median_seconds, print_ratios
from matquant.codes.nested import materialize, nest
from matquant.codes.quantizers import minmax_grid
from matquant.config.cell import GridSpec
from matquant.models.layers.families import block_name, blocks, linears
from matquant.notation import Plan


def main() -> None:
    model = AutoModelForCausalLM.from_config(SMOLLM2, dtype=torch.bfloat16)
    found = {
        f"{block_name(model, index)}.{name}": linear
        for index, block in enumerate(blocks(model))
        for name, linear in linears(block, "ffn").items()
    }
    grid = GridSpec(group_size=64)
    layers = {name: nest(linear.weight, minmax_grid(linear.weight, 8, grid), 8) for name, linear in found.items()}
    weights = {name: linear.weight.detach().float() for name, linear in found.items()}

    @torch.no_grad()
    def copy() -> None:
        for name, linear in found.items():
            linear.weight.copy_(weights[name])

    num_weights = sum(weight.numel() for weight in weights.values())
    print(f"SmolLM2-135M, FFN scope: {num_weights / 1e6:.1f}M weights, {torch.get_num_threads()} threads")
    rival = "copy of float32 weights (rival)"
    plans = {label: Plan.parse(label) for label in ("int8", "int4", "int2", "int2+ep")}
    reads = {
        f"materialize {label}": lambda plan=plan: materialize(model, layers, plan) for label, plan in plans.items()
    }
    print_ratios(median_seconds({rival: copy, **reads}, repeats=7), rival=rival)


if __name__ == "__main__":
    main()
