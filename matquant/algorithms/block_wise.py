"""A trial of the walk through a model block by block, without its weights, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matquant.algorithms.block_arguments import PerSequence, block_arguments
from matquant.algorithms.calibration import Activations, Chain, Shelf, attend, first_input, run_chain
from matquant.config.cell import Cell, GPTQBase, OmniQuantBase, Scope
from matquant.errors import UserError
from matquant.models.layers.families import architecture, around_blocks, blocks, family_of, linears
from matquant.models.loading import skeleton

TOKENS = torch.zeros((2, 4), dtype=torch.long)


def require_block_wise(cell: Cell, *, cache: Path) -> None:
    """Refuses a cell whose base runs blocks one by one where its model does not allow that."""
    if not isinstance(cell.base, OmniQuantBase | GPTQBase):
        return
    assert cell.scope is not None
    model = skeleton(cell.model, cache=cache)
    if (reason := family_of(model).not_block_wise or _failure(model, cell.scope)) is not None:
        raise UserError(
            f"base={cell.base.kind} runs the blocks of a model one by one, which {_name(model)} does not allow: "
            f"{reason}; choose base=minmax, base=search or base=qat"
        )


def _name(model: nn.Module) -> str:
    return architecture(model) or type(model).__name__


def _failure(model: nn.Module, scope: Scope) -> str | None:
    """The reason why a block cannot be run by itself; None if all can, or if only a run with weights would tell."""
    try:
        _walk(model, scope)
    except UserError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    except Exception:  # of any kind: code that looks at values, as at the choice of an expert, finds none here
        return None
    return None


def _walk(model: nn.Module, scope: Scope) -> None:
    """Runs the parts around the blocks on zeros, and one block of each structure on the meta device."""
    for part in around_blocks(model):
        _fill_with_zeros(part)
    hidden = _on_meta(first_input(model, TOKENS))
    found = zip(blocks(model), block_arguments(model, TOKENS[:1]), strict=True)
    structures = {tuple(name for name, _ in block.named_parameters()): (block, given) for block, given in found}
    for block, given in structures.values():
        arguments = {name: _on_meta(value) for name, value in given.items()}
        chain = Chain(Activations(hidden, hidden.device, hidden.dtype))
        if scope == "ffn":
            chain = _attended(block, chain.hidden, arguments)
        run_chain(block, chain.batch(torch.arange(len(hidden))), arguments, dtype=torch.float32)


def _attended(block: nn.Module, hidden: Activations, arguments: dict[str, Any]) -> Chain:
    """The attention of a block, after which its feed-forward network has to come."""
    early: list[nn.Module] = []
    hooks = [
        linear.register_forward_pre_hook(lambda layer, _: early.append(layer))
        for linear in linears(block, "ffn").values()
    ]
    chain = attend(block, hidden, arguments, batch_size=len(hidden), dtype=torch.float32, shelf=Shelf())
    for hook in hooks:
        hook.remove()
    if early:
        raise UserError("its attention comes after its feed-forward network")
    return chain


def _fill_with_zeros(part: nn.Module) -> None:
    """Gives a module without weights zeros that take no memory: one number, seen at every place."""
    for module in part.modules():
        for name, weight in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_zeros_like(weight), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, _zeros_like(buffer), persistent=False)


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _on_meta(value: Any) -> Any:
    match value:
        case PerSequence(part):
            return PerSequence(part.to("meta"))
        case Tensor():
            return value.to("meta")
        case tuple():
            return tuple(map(_on_meta, value))
        case _:
            return value
