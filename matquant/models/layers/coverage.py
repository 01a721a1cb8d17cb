"""The share of a scope that quantization reaches.

A scope means every matrix of a part of a block.  Where a model keeps some of them in another form than a linear layer,
or in a place that nobody looks at, a table that calls the rest "4 bits" is wrong about the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from matquant.config.cell import Cell, Scope
from matquant.errors import UserError
from matquant.models.layers.experts import of_all_experts, routers
from matquant.models.layers.families import block_name, blocks, family_of, is_attention, linears
from matquant.notation import share_text

ELEMENTWISE = ("A_log",)
"""Parameters of two dimensions that multiply states number by number, as a norm's weight does (Mamba)."""
SHOWN = 3
"""The number of matrices that a message names."""


@dataclass(frozen=True)
class Coverage:
    """The weights of a scope's matrices, in all blocks, and those of them that are quantized."""

    reached: int
    total: int
    left_out: tuple[str, ...]
    """The matrices that are not quantized although they belong to the scope, by their path inside a block."""
    kept: tuple[str, ...]
    """The routers, and what a family declares as small: they stay in full precision and are not counted."""

    @property
    def share(self) -> float:
        return self.reached / self.total if self.total else 0.0


def coverage(model: nn.Module, scope: Scope) -> Coverage:
    """Compares the layers that are quantized with all matrices of the scope."""
    reached, total = 0, 0
    left_out, kept = dict[str, None](), dict[str, None]()
    for block in blocks(model):
        quantized = {f"{path}.weight" for path in linears(block, scope)}
        routing, small = routers(block), family_of(block).kept
        kept |= dict.fromkeys([*(of_all_experts(path) for path in sorted(routing)), *small])
        for path, weight in matrices(block):
            if path.rpartition(".")[0] in routing or path.partition(".")[0] in small:
                continue
            if scope == "ffn_attention" or not is_attention(block, path):
                total += weight.numel()
                if path in quantized:
                    reached += weight.numel()
                else:
                    left_out[_name(path)] = None
    return Coverage(reached, total, tuple(left_out), tuple(kept))


def matrices(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a block that multiply vectors, by path.

    Not those of norms (whose weights may have a row for each head), of embeddings, which are looked up, nor of
    convolutions, which are small; nor vectors, whatever dimensions they are given.
    """
    for path, module in block.named_modules():
        if "Norm" in type(module).__name__ or isinstance(module, nn.Embedding | nn.modules.conv._ConvNd):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if sum(size > 1 for size in parameter.shape) >= 2 and name not in ELEMENTWISE:
                yield f"{path}.{name}".lstrip("."), parameter


def _name(path: str) -> str:
    return of_all_experts(path.removesuffix(".weight"))


def check_layers(cell: Cell, model: nn.Module, names: Iterable[str], folder: Path) -> None:
    """Refuses a checkpoint of other layers than the cell's scope names, as of a time when fewer were known."""
    assert cell.scope is not None
    expected = {
        f"{block_name(model, index)}.{path}"
        for index, block in enumerate(blocks(model))
        for path in linears(block, cell.scope)
    }
    if odd := sorted(expected ^ set(names)):
        raise UserError(
            f"{folder} does not hold the layers that scope={cell.scope} names in {cell.model.name}: {odd[0]} is in "
            f"only one of them ({len(odd)} differ); delete {folder} and run the cell again"
        )


def check_coverage(cell: Cell, model: nn.Module) -> None:
    """Refuses a cell whose scope reaches a part of what it names, unless it says that it means a part."""
    assert cell.scope is not None
    found = coverage(model, cell.scope)
    if found.left_out and not cell.partial_scope:
        names = ", ".join(found.left_out[:SHOWN]) + (", ..." if len(found.left_out) > SHOWN else "")
        raise UserError(
            f"scope={cell.scope} reaches {share_text(found.share)} of the block weights of {cell.model.name}: {names} "
            f"{'is' if len(found.left_out) == 1 else 'are'} left out; set scope.partial=true to go on, and every table "
            "will say so"
        )
