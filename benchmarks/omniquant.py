"""The cost of an OmniQuant MatQuant fit, on blocks of SmolLM2's shapes in FFN scope.

    python -m benchmarks.omniquant

(a) One step for {8, 4, 2} against a plain loop that, for each slice, recomputes the whole block and its teacher and
    reads the slice with ordinary autograd.  Target: at least 2x faster, the same losses to 1e-3.
(b) A whole fit for {8, 4, 2} against the sum of the three explicit baselines.  Target: at most 0.85x.
(c) The cost of the diagnostics.  Target: under 3 % of a step.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.timing import NoProgress, median_seconds, print_ratios, smollm2
from matquant.algorithms import omniquant
from matquant.algorithms.calibration import Activations, attend, block_outputs, capture, run_block
from matquant.codes.nested import GradientMeter
from matquant.config.cell import GridSpec, OmniQuantBase
from matquant.models.layers.families import blocks
from matquant.notation import Objective
from reference.nested_reference import read_slice

NESTED = Objective.parse(8, {"int8": 1.0, "int4": 1.0, "int2": 1.0})
BASELINES = [Objective.parse(bits, {f"int{bits}": 1.0}) for bits in (8, 4, 2)]
GRID = GridSpec(group_size=64)
TOKENS = torch.randint(0, 49152, (32, 128), generator=torch.Generator().manual_seed(0))


def settings_of(objective: Objective, *, num_steps: int) -> omniquant.Settings:
    base = OmniQuantBase(
        kind="omniquant",
        num_steps=num_steps,
        batch_size=4,
        clipping_lr=0.1,
        loss="relative_l2",
        compute_dtype="bfloat16",
    )
    return omniquant.Settings(base, objective, "ffn", GRID, seed=0)


class Steps:
    """One optimization step of one block, three ways."""

    def __init__(self, block: nn.Module, hidden: Activations, arguments: dict[str, object]) -> None:
        self.settings = settings = settings_of(NESTED, num_steps=1)
        self.hidden, self.block, self.arguments = hidden, block, arguments
        options = {"batch_size": 4, "dtype": settings.dtype, "shelf": settings.shelf}
        target = block_outputs(block, hidden, arguments, **options)
        chains = dict.fromkeys(settings.inputs, attend(block, hidden, arguments, **options))
        self.fit = omniquant.BlockFit(0, block, arguments, chains, target, settings)
        self.layers = self.fit.learnable()
        self.batch = torch.arange(4)

    def ours(self, meter: GradientMeter | None = None) -> dict[str, float]:
        losses = self.fit.backward(self.layers, self.batch, meter)
        return {name: loss.item() for name, loss in losses.terms.items()}

    def cycle(self, *, diagnosed: bool) -> None:
        """Does the steps that share one measurement of the diagnostics."""
        meter = GradientMeter() if diagnosed else None
        self.ours(meter)
        if meter is not None:
            meter.take()
            omniquant.clipping_factors(self.layers)
        for _ in range(omniquant.DIAGNOSED_EVERY - 1):
            self.ours()

    def plain(self) -> dict[str, float]:
        dtype, losses = self.settings.dtype, {}
        for part in NESTED.slices:
            hidden = self.hidden.batch(self.batch)
            with torch.no_grad():
                target = run_block(self.block, hidden, self.arguments, dtype=dtype)
            weights = {
                f"{path}.weight": read_slice(layer.weight, layer.clipping(), part, parent_bits=8)
                for path, layer in self.layers.items()
            }
            loss = self.fit.distance(
                run_block(self.block, hidden, self.arguments, dtype=dtype, weights=weights), target
            )
            loss.backward()
            losses[str(part)] = loss.item()
        return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="steps of each kind; the median counts")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(smollm2(2), dtype=torch.float32).requires_grad_(False).eval()
    hidden, arguments = capture(
        model, TOKENS, batch_size=4, dtype=torch.bfloat16, shelf=settings_of(NESTED, num_steps=1).shelf
    )
    steps = Steps(blocks(model)[0], hidden, arguments[0])
    ours, plain = steps.ours(), steps.plain()
    assert all(abs(ours[name] / plain[name] - 1) < 1e-3 for name in plain), (ours, plain)

    print(f"OmniQuant MatQuant {{8, 4, 2}}, SmolLM2's block, FFN, 4 x 128 tokens, {torch.get_num_threads()} threads")
    print("(a) one step, forward and backward; losses agree to 1e-3")
    rival = "plain loop over slices (rival)"
    seconds = median_seconds({rival: steps.plain, "ours": steps.ours}, repeats=repeats)
    print_ratios(seconds, rival=rival)
    print(f"  ours is {seconds[rival] / seconds['ours']:.2f}x faster (target 2x)")

    print("(b) a whole fit of two blocks, 8 steps each")
    fits = {f"{objective.slug}": objective for objective in [*BASELINES, NESTED]}
    whole = median_seconds(
        {
            name: lambda objective=objective: omniquant.fit(
                model, TOKENS, settings_of(objective, num_steps=8), NoProgress()
            )
            for name, objective in fits.items()
        },
        repeats=3,
    )
    rival = "sum of the three baselines (rival)"
    print_ratios({**whole, rival: sum(whole[objective.slug] for objective in BASELINES)}, rival=rival)

    print(f"(c) diagnostics, measured once in {omniquant.DIAGNOSED_EVERY} steps (target: under 3 %)")
    rival = "steps without diagnostics (rival)"
    cycles = median_seconds(
        {rival: lambda: steps.cycle(diagnosed=False), "with diagnostics": lambda: steps.cycle(diagnosed=True)},
        repeats=repeats,
    )
    print_ratios(cycles, rival=rival)


if __name__ == "__main__":
    main()
