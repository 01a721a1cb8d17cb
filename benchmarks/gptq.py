"""The cost of a MatGPTQ fit, on layers of SmolLM2's shapes in FFN scope.

    python -m benchmarks.gptq [--blocks 2] [--sequences 16]
    python -m benchmarks.gptq --shapes gemma2_9b      (a) and (b) at Gemma-2 9B, on a GPU where there is one

(a) The column solve for {8, 4, 2} against the one for {8} alone, which is plain GPTQ.  Target: at most 1.3x.
(b) The column solve for {8, 4, 2} against the published way, all 256 codes tried for every weight
    (reference/gptq_reference.py), with the same read-out error at every width.  Target: at least 3.5x faster.
(c) The solve's part of a whole fit.  Target: less than everything else (forward passes and second moments).
(d) The solve for one width against llm-compressor's own, if that is installed (`benchmarks.gptq_peer`).

Hessians are those of the model's own activations on random tokens, or at Gemma-2 9B's shapes of random inputs of very
different sizes; weights are random, as are the model's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.gptq_peer import against_peer
from benchmarks.timing import NoProgress, median_seconds, print_ratios, smollm2
from matquant.algorithms import gptq
from matquant.algorithms.moments import Sum
from matquant.codes.column_solve import Solution, solve
from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import Grid
from matquant.config.cell import GPTQBase, GridSpec
from matquant.models.layers.families import blocks, linears
from matquant.notation import Objective, Slice
from reference.gptq_reference import brute_force, output_error

PLAIN = Objective.parse(8, {"int8": 1.0})
NESTED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})
GRID = GridSpec(group_size=64)
SEQUENCE = 128
BASE = GPTQBase(kind="gptq", compute_dtype="bfloat16")
Problem = tuple[str, Tensor, Tensor]
"""A name, stacked weights, the Hessian of their input."""


class Solves:
    """The column solve, with a clock on it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, *arguments: Any, **keywords: Any) -> Solution:
        start = time.perf_counter()
        solution = solve(*arguments, **keywords)
        self.seconds += time.perf_counter() - start
        return solution


def problems_of(model: PreTrainedModel, tokens: Tensor) -> list[Problem]:
    """The two problems of a block: gate and up, which share an input, and down."""
    found = linears(blocks(model)[0], "ffn")
    sums = {name: Sum.of(found[name]) for name in ("mlp.gate_proj", "mlp.down_proj")}
    handles = [found[name].register_forward_pre_hook(total.add) for name, total in sums.items()]
    with torch.no_grad():
        model.get_submodule("model")(input_ids=tokens)
    for handle in handles:
        handle.remove()
    gate_up = torch.cat([found["mlp.gate_proj"].weight, found["mlp.up_proj"].weight])
    hessians = {name: total.mean().hessian for name, total in sums.items()}
    return [
        ("gate and up", gate_up, hessians["mlp.gate_proj"]),
        ("down", found["mlp.down_proj"].weight, hessians["mlp.down_proj"]),
    ]


def problems_like_gemma(device: str) -> list[Problem]:
    """The two problems of a block of Gemma-2 9B."""
    draw = torch.Generator(device).manual_seed(0)

    def problem(name: str, num_outputs: int, num_inputs: int) -> Problem:
        sizes = torch.randn(num_inputs, generator=draw, device=device).exp()
        x = torch.randn(2 * num_inputs, num_inputs, generator=draw, device=device) * sizes
        weight = 0.02 * torch.randn(num_outputs, num_inputs, generator=draw, device=device)
        return name, weight, x.T @ x / num_inputs

    return [problem("gate and up", 2 * 14336, 3584), problem("down", 3584, 14336)]


def ours(problem: Problem, objective: Objective) -> Solution:
    _, weight, hessian = problem
    return solve(weight, hessian, objective=objective, spec=GRID, base=BASE)


def rival(problem: Problem) -> NestedWeight:
    _, weight, hessian = problem
    found = brute_force(weight, hessian, NESTED, group_size=GRID.group_size, symmetric=False, damping=BASE.damping)
    return NestedWeight(found["codes"], Grid(found["scale"], found["zero"]), 8)


def compare_errors(problem: Problem) -> None:
    """Prints the read-out error at every width, of both solves; they differ by rounding only."""
    name, weight, hessian = problem
    solution, theirs = ours(problem, NESTED), rival(problem)
    mine = NestedWeight(solution.codes, solution.grid, 8)
    same = (mine.codes == theirs.codes).float().mean().item()
    for part in (Slice(8), Slice(4), Slice(2)):
        errors = [output_error(weight, hessian, nested.at(part).weight) for nested in (mine, theirs)]
        print(f"  {name}, {part}: error {errors[0] / errors[1]:.5f} of the rival's; {100 * same:.3f} % of codes equal")


def each(action: Callable[..., object], problems: list[Problem], *rest: object) -> Callable[[], None]:
    def all_of_them() -> None:
        for problem in problems:
            action(problem, *rest)
        if problems[0][1].is_cuda:
            torch.cuda.synchronize()

    return all_of_them


def compare_solves(problems: list[Problem], repeats: int) -> None:
    """(a) and (b): times, and read-out errors."""
    names = {"plain": "plain GPTQ {8} (rival)", "nested": "nested {8, 4, 2}", "brute": "brute force (rival)"}
    actions = {
        names["plain"]: each(ours, problems, PLAIN),
        names["nested"]: each(ours, problems, NESTED),
        names["brute"]: each(rival, problems),
    }
    seconds = median_seconds(actions, repeats=repeats)
    print("(a) the solve of one block, against plain GPTQ (target: at most 1.3x)")
    print_ratios({name: seconds[name] for name in (names["plain"], names["nested"])}, rival=names["plain"])
    print("(b) against all 256 codes for every weight")
    print_ratios({name: seconds[name] for name in (names["brute"], names["nested"])}, rival=names["brute"])
    print(f"  ours is {seconds[names['brute']] / seconds[names['nested']]:.2f}x faster (target 3.5x)")
    for problem in problems:
        compare_errors(problem)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="solves of each kind; the median counts")
    parser.add_argument("--blocks", type=int, default=2, help="of the whole fit; SmolLM2 has 30")
    parser.add_argument("--sequences", type=int, default=128, help="of 128 tokens; 128 are 16k tokens")
    parser.add_argument("--shapes", choices=["smollm2", "gemma2_9b"], default="smollm2")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.shapes == "gemma2_9b":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(f"MatGPTQ {{8, 4, 2}}, a block of Gemma-2 9B, FFN, group 64, {device}")
        with torch.device(device):
            compare_solves(problems_like_gemma(device), arguments.repeats)
        return
    model = AutoModelForCausalLM.from_config(smollm2(arguments.blocks), dtype=torch.float32)
    model = model.requires_grad_(False).eval()
    tokens = torch.randint(0, 49152, (arguments.sequences, SEQUENCE), generator=torch.Generator().manual_seed(0))
    print(f"MatGPTQ {{8, 4, 2}}, SmolLM2's FFN, group 64, {torch.get_num_threads()} threads")
    compare_solves(problems_of(model, tokens[:16]), arguments.repeats)
    print(f"(c) a whole fit of {arguments.blocks} blocks, {tokens.numel()} tokens (target: the solve under 0.5x)")
    settings = gptq.Settings(BASE, NESTED, "ffn", GRID)
    with mock.patch.object(gptq, "solve", Solves()) as solves:
        whole = median_seconds({"fit": lambda: gptq.fit(model, tokens, settings, NoProgress())}, repeats=1)["fit"]
    fit, part = "whole fit (rival)", solves.seconds / 2  # of the run that counts and of the one before it
    print_ratios({fit: whole, "solve": part, "forward passes and second moments": whole - part}, rival=fit)
    print("(d) one width against llm-compressor (target: equal codes, in no more time)")
    against_peer(repeats=arguments.repeats)


if __name__ == "__main__":
    main()
