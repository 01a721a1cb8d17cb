"""The column solve beside that of llm-compressor, on one layer: the same Hessian, the same grid.

    python -m benchmarks.gptq_peer [--bits 4] [--repeats 5]
    pip install --no-deps llmcompressor compressed-tensors==0.19.0 loguru      in an environment of its own

Both get the weights of a layer of SmolLM2's shape, the second moments of correlated inputs, a symmetric grid that is
set from the unchanged weights, and damping 0.01.  For each there are the error tr((W - Q) H (W - Q)^T), the time beside
theirs, and the share of codes that are equal.  Beside them stand the two slow twins of the tests
(`reference/gptq_reference.py`): the textbook, a float64 inverse that loses a row after each column, and for one group
an output the brute force, which tries all codes.

With groups both solve inputs with the largest activations first (`base.act_order`, their `actorder=weight`), since
then both set all grids beforehand.  Ours alone solves for several widths, so theirs is compared with one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.timing import median_seconds, print_ratios
from matquant.codes.column_solve import solve
from matquant.codes.quantizers import Grid, grouped, minmax_grid
from matquant.config.cell import GPTQBase, GridSpec
from matquant.notation import Objective
from reference.gptq_reference import brute_force, output_error, textbook

MISSING = (
    "skipped: llm-compressor is not installed; in an environment of its own type "
    "pip install --no-deps llmcompressor compressed-tensors==0.19.0 loguru"
)
DAMPING = 0.01
PEER = "llm-compressor (rival)"


@dataclass(frozen=True)
class Layer:
    """A layer to be quantized: its weight, the second moments of its inputs, and its symmetric grid."""

    weight: Tensor
    hessian: Tensor
    bits: int
    spec: GridSpec

    @property
    def grid(self) -> Grid:
        """The grid of the unchanged weights, which both solves are given."""
        return minmax_grid(self.weight, self.bits, self.spec)

    @property
    def base(self) -> GPTQBase:
        return GPTQBase(kind="gptq", damping=DAMPING, act_order=self.spec.group_size is not None)

    def read(self, codes: Tensor) -> Tensor:
        """The weights that some codes stand for."""
        scale, zero = self.grid
        values = grouped(codes.float(), scale.shape[1]) - zero[..., None]
        return (values * scale[..., None]).flatten(1)


def ours(layer: Layer) -> Tensor:
    """Our codes."""
    objective = Objective.parse(layer.bits, {f"int{layer.bits}": 1.0})
    return solve(layer.weight, layer.hessian, objective=objective, spec=layer.spec, base=layer.base).codes


def slow(layer: Layer) -> Tensor:
    """The codes of the tests' textbook, in the order that the layer is solved in."""
    size = layer.weight.shape[1]
    order = layer.hessian.diagonal().argsort(descending=True, stable=True)
    order = order if layer.base.act_order else torch.arange(size)
    scale, zero = (part.repeat_interleave(size // part.shape[1], 1)[:, order].double() for part in layer.grid)
    weight, hessian = layer.weight[:, order], layer.hessian[order][:, order]
    found = textbook(weight, hessian, scale, zero, bits=layer.bits, damping=DAMPING)
    codes = torch.empty_like(found)
    codes[:, order] = found
    return codes


def brute(layer: Layer) -> Tensor:
    """The codes of the tests' brute force, for one group an output."""
    objective = Objective.parse(layer.bits, {f"int{layer.bits}": 1.0})
    weight, hessian = layer.weight, layer.hessian
    return brute_force(weight, hessian, objective, group_size=None, symmetric=True, damping=DAMPING)["codes"]


def theirs(layer: Layer) -> Tensor:
    """The codes of llm-compressor; its own run from -2^(c-1), without a zero."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight  # pyright: ignore[reportMissingImports] -- optional

    scale, zero = layer.grid
    kind = {"strategy": "channel"}
    if layer.spec.group_size is not None:
        kind = {"strategy": "group", "group_size": layer.spec.group_size, "actorder": "weight"}
    values, _, fell_back = quantize_weight(
        layer.weight[None].clone(),
        layer.hessian[None].clone(),
        scale=scale[None],
        zero_point=torch.zeros_like(scale)[None],
        global_scale=None,
        quant_args=QuantizationArgs.model_validate({"num_bits": layer.bits, "symmetric": True, **kind}),
        percdamp=DAMPING,
    )
    assert not fell_back.any(), "llm-compressor could not factor the Hessian and rounded to nearest"
    steps = grouped(values[0], scale.shape[1]) / scale[..., None] + zero[..., None]
    return steps.round().flatten(1).to(torch.uint8)


def layer_of(bits: int, spec: GridSpec, *, outputs: int, inputs: int) -> Layer:
    """Random weights, and inputs that are correlated and of very different sizes."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randn(inputs, generator=draw).exp()
    mixing = torch.eye(inputs) + torch.randn(inputs, inputs, generator=draw) / inputs**0.5
    x = torch.randn(4 * inputs, inputs, generator=draw) @ mixing * sizes
    return Layer(0.02 * torch.randn(outputs, inputs, generator=draw), 2 * x.T @ x / len(x), bits, spec)


def compare(layer: Layer, repeats: int) -> None:
    """Prints errors, equal codes and times."""
    solves: dict[str, Callable[[Layer], Tensor]] = {PEER: theirs, "ours": ours}
    if layer.spec.group_size is None:
        solves["brute force"] = brute
    found = {name: solve_with(layer) for name, solve_with in (*solves.items(), ("textbook", slow))}
    for name, codes in found.items():
        error = output_error(layer.weight, layer.hessian, layer.read(codes))
        same = (codes == found[PEER]).float().mean().item()
        print(f"  {name:24} error {error:.6g}; {100 * same:.3f} % of codes are theirs")
    seconds = median_seconds({name: lambda how=how: how(layer) for name, how in solves.items()}, repeats=repeats)
    print_ratios(seconds, rival=PEER)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4, choices=range(2, 9), help="the width (default: 4)")
    parser.add_argument("--outputs", type=int, default=3072, help="outputs of the layer (default: gate and up)")
    parser.add_argument("--inputs", type=int, default=576, help="inputs of the layer")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="solves of each kind; the median counts")
    options = parser.parse_args()
    if options.inputs % options.group_size:
        parser.error(
            f"--inputs={options.inputs} are not whole groups of {options.group_size}; "
            f"choose --inputs={options.inputs // options.group_size * options.group_size or options.group_size}"
        )
    against_peer(options.bits, options.outputs, options.inputs, options.group_size, options.repeats)


def against_peer(bits: int = 4, outputs: int = 3072, inputs: int = 576, group_size: int = 64, repeats: int = 5) -> None:
    """Prints the comparison, or in one sentence what has to be installed for it."""
    if find_spec("llmcompressor") is None:
        print(MISSING)
        return
    print(f"int{bits}, {outputs} x {inputs}, {torch.get_num_threads()} threads")
    for size in (None, group_size):
        print("one group an output" if size is None else f"groups of {size}, largest activations first")
        compare(layer_of(bits, GridSpec(group_size=size, symmetric=True), outputs=outputs, inputs=inputs), repeats)


if __name__ == "__main__":
    main()
