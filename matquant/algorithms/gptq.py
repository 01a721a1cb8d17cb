"""GPTQ (arXiv:2210.17323) and MatGPTQ (arXiv:2602.03537): one column solve for every linear layer, block by block.

At each block the calibration text runs through once, to collect the second moments of what its linear layers receive;
they are solved (`matquant.codes.column_solve`), and the text runs through the finished block to give the next one its
input.  With the one term {c} the codes are GPTQ's, with several MatGPTQ's.

Layers with the same input (q, k, v; gate, up) share its moments and are solved as one, stacked along their outputs:
every row of a weight is a problem of its own.

An expert's moments are those of the tokens that were routed to it.  An input that none of them activates is rounded to
nearest: other text may activate it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, assert_never

import torch
from jaxtyping import Int
from torch import Tensor, nn

from matquant.algorithms.calibration import (
    Activations,
    Chain,
    ChainBatch,
    Hidden,
    Shelf,
    attend,
    capture,
    run_chain,
    suited_to,
)
from matquant.algorithms.moments import Moments, Sum, all_alive
from matquant.algorithms.progress import Layers, Progress
from matquant.codes.column_solve import Solution, solve
from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import DTYPES, Grid
from matquant.config.cell import GPTQBase, GridSpec, Scope
from matquant.errors import NotFiniteError
from matquant.models.layers.experts import is_of_expert, of_all_experts
from matquant.models.layers.families import block_name, blocks, input_names, linears
from matquant.notation import Objective, Slice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The settings of a GPTQ fit."""

    base: GPTQBase
    objective: Objective
    scope: Scope
    grid: GridSpec
    shelf: Shelf = field(default_factory=Shelf)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.base.compute_dtype]

    @property
    def student(self) -> Slice | None:
        """The slice whose outputs the next block receives; none for the unquantized weights'."""
        match self.base.student_input:
            case "full":
                return None
            case "parent":
                return Slice(self.objective.parent_bits)
            case text:
                return Slice.parse(text)

    def chain(self, block: nn.Module, hidden: Activations, arguments: Mapping[str, Any]) -> Chain:
        """The input of a block; its attention is computed once where nothing in it is quantized."""
        match self.scope:
            case "ffn":
                size = self.base.batch_size
                return attend(block, hidden, arguments, batch_size=size, dtype=self.dtype, shelf=self.shelf)
            case "ffn_attention":
                return Chain(hidden)
            case _:
                assert_never(self.scope)


@torch.no_grad()
def fit(model: nn.Module, tokens: Int[Tensor, "sequences tokens"], settings: Settings, progress: Progress) -> Layers:
    """Quantizes every linear layer in scope; the model's own weights are not changed."""
    warn_of_few_tokens(model, settings.scope, num_tokens=tokens.numel())
    shelf = settings.shelf
    hidden, arguments = capture(model, tokens, batch_size=settings.base.batch_size, dtype=settings.dtype, shelf=shelf)
    layers: dict[str, NestedWeight] = {}
    found = blocks(model)
    for index, (block, keywords) in enumerate(zip(found, arguments, strict=True)):
        with suited_to(block, settings.dtype):
            name = block_name(model, index)
            solving = BlockSolve(index, name, block, keywords, settings.chain(block, hidden, keywords), settings)
            finished = progress.resume(name, lambda solving=solving: solving.run(progress))
            layers |= {f"{name}.{path}": nested for path, nested in finished.items()}
            progress.tick(index + 1, len(found), name)
            if index + 1 < len(found):
                hidden = shelf.keep(solving.outputs(finished), len(tokens))
    return layers


def warn_of_few_tokens(model: nn.Module, scope: Scope, *, num_tokens: int) -> None:
    """Warns of layers that have more inputs than there are tokens: their Hessians are singular but for the damping.

    Not of experts: how many tokens each of them sees is known, and said, when its block is solved.
    """
    found = (pair for block in blocks(model) for pair in linears(block, scope).items())
    features = [linear.in_features for path, linear in found if not is_of_expert(path)]
    starved = [number for number in features if number > num_tokens]
    if starved:
        log.warning(
            "%d of %d layers have more inputs (up to %d) than there are calibration tokens (%d), so that "
            "without damping their Hessians are singular; raise data.num_sequences",
            *(len(starved), len(features), max(starved), num_tokens),
        )


@dataclass(frozen=True)
class BlockSolve:
    """One block's layers, to be solved on what enters the block."""

    index: int
    name: str
    block: nn.Module
    arguments: Mapping[str, Any]
    chain: Chain
    settings: Settings

    def run(self, progress: Progress) -> Layers:
        """The nested weights of the block, by path inside it."""
        found = linears(self.block, self.settings.scope)
        layers: dict[str, NestedWeight] = {}
        routed: dict[str, int] = {}
        for stage in stages(found, one_by_one=self.settings.base.true_sequential):
            moments = self.second_moments([found[paths[0]] for paths in stage], layers)
            for paths, (hessian, tokens) in zip(stage, moments, strict=True):
                if is_of_expert(paths[0]):
                    routed |= dict.fromkeys(paths, tokens)
                elif tokens == 0:
                    log.warning(
                        "block %d: the input of %s is not seen, for the model multiplies by its weight itself; it is "
                        "rounded to nearest",
                        *(self.index, " and ".join(paths)),
                    )
                if is_of_expert(paths[0]) or tokens == 0:
                    hessian = all_alive(hessian)
                solution = self._solve([found[path].weight for path in paths], hessian, " and ".join(paths))
                outputs = [found[path].out_features for path in paths]
                layers |= zip(paths, apart(solution, outputs, self.settings.objective.parent_bits), strict=True)
                progress.log({**self._record(paths, solution), "tokens": tokens})
        self._say_what_experts_saw(routed, found)
        return {path: layers[path] for path in found}

    def second_moments(self, sees: Sequence[nn.Linear], layers: Layers) -> list[Moments]:
        """The moments of what some linear layers receive, float32, summed batch by batch on their device.

        `layers` of this block that are solved already are in place.
        """
        sums = [Sum.of(one) for one in sees]
        with ExitStack() as stack:
            for linear, total in zip(sees, sums, strict=True):
                stack.callback(linear.register_forward_pre_hook(total.add).remove)
            for _ in self.outputs(layers):
                pass
        return [total.mean() for total in sums]

    def _say_what_experts_saw(self, routed: Mapping[str, int], found: Mapping[str, nn.Linear]) -> None:
        """One line for a block with experts; a warning where some saw too few tokens to be solved well."""
        if not routed:
            return
        num_tokens, number = self.chain.hidden.states.shape[:2].numel(), self.index
        log.info("block %d: an expert saw %d to %d of %d tokens", number, *span(routed.values()), num_tokens)
        few = [path for path, tokens in routed.items() if tokens < found[path].in_features]
        if few:
            log.warning(
                "block %d: %d of %d matrices of experts saw fewer tokens than they have inputs, %d of them none "
                "(rounded to nearest); raise data.num_sequences",
                *(number, len(few), len(routed), sum(routed[path] == 0 for path in few)),
            )

    def outputs(self, layers: Layers) -> Iterator[Hidden]:
        """The block's output for every batch, with these layers read at the slice that feeds the next block."""
        student = self.settings.student
        weights = {} if student is None else {f"{path}.weight": one.at(student).weight for path, one in layers.items()}
        for batch in self._batches():
            yield run_chain(self.block, batch, self.arguments, dtype=self.settings.dtype, weights=weights)

    def _batches(self) -> Iterator[ChainBatch]:
        for index in torch.arange(len(self.chain.hidden)).split(self.settings.base.batch_size):
            yield self.chain.batch(index)

    def _solve(self, weights: Sequence[Tensor], hessian: Tensor, names: str) -> Solution:
        settings = self.settings
        try:
            return solve(
                torch.cat([weight.detach().float() for weight in weights]),
                hessian,
                objective=settings.objective,
                spec=settings.grid,
                base=settings.base,
            )
        except NotFiniteError as error:
            raise NotFiniteError(f"{self.name}.{names}: {error}") from error

    def _record(self, paths: Sequence[str], solution: Solution) -> dict[str, Any]:
        """A line of train.jsonl for some layers that were solved together."""
        inverse = solution.inverse
        return {
            "block": self.index,
            "layers": ", ".join(paths),
            "error": solution.error.sum().item(),
            "damping": inverse.damping,
            "damping_retries": inverse.retries,
            "dead_inputs": int(inverse.dead.sum()),
        }


def stages(found: Iterable[str], *, one_by_one: bool) -> list[list[list[str]]]:
    """Layers that share an input, in the stages that they are solved in: all at once, or one input after the other.

    The experts of a block have no order among them: a stage has the same matrix of each.
    """
    together: dict[str, list[str]] = {}
    for path, name in input_names(found).items():
        together.setdefault(name, []).append(path)
    if not one_by_one:
        return [list(together.values())]
    ordered: dict[str, list[list[str]]] = {}
    for name, paths in together.items():
        ordered.setdefault(of_all_experts(name), []).append(paths)
    return list(ordered.values())


def span(numbers: Iterable[int]) -> tuple[int, int]:
    """The smallest and the largest of some numbers."""
    ordered = sorted(numbers)
    return ordered[0], ordered[-1]


def apart(solution: Solution, num_outputs: Sequence[int], parent_bits: int) -> list[NestedWeight]:
    """The layers that were solved stacked."""
    parts = (tensor.split(list(num_outputs)) for tensor in (solution.codes, *solution.grid))
    return [NestedWeight(codes, Grid(scale, zero), parent_bits) for codes, scale, zero in zip(*parts, strict=True)]
