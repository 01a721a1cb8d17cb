"""How long one slice of a 135M checkpoint takes to be read into a plain model.

    python -m benchmarks.materialize        target: at most 1 s on 2 cores

The rival, in the same run, is copying as many full-precision weights into the model: the least any way of switching
slices has to do.  Absolute times depend on the machine; the ratio should not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from matquant.cell import GridSpec
from matquant.models import block_name, blocks, linears
from matquant.nested import materialize, nest
from matquant.notation import Plan
from matquant.quantizers import minmax_grid

SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
REPEATS = 7


def median_seconds(action: Callable[[], object]) -> float:
    """The median over several runs, after one that is not counted."""
    action()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    model = AutoModelForCausalLM.from_config(SMOLLM2, dtype=torch.bfloat16)
    found = {
        f"{block_name(index)}.{name}": linear
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

    rival = median_seconds(copy)
    num_weights = sum(weight.numel() for weight in weights.values())
    print(f"SmolLM2-135M, FFN scope: {num_weights / 1e6:.1f}M weights, {torch.get_num_threads()} threads")
    print(f"{'copy of float32 weights (rival)':34} {rival:6.3f} s    1.0x")
    for label in ("int8", "int4", "int2", "int2+ep"):
        plan = Plan.parse(label)
        seconds = median_seconds(lambda plan=plan: materialize(model, layers, plan))
        print(f"{'materialize ' + label:34} {seconds:6.3f} s {seconds / rival:6.1f}x")


if __name__ == "__main__":
    main()
