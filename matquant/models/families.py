"""Families of models: transformer blocks, and the linear layers in a scope.

The only module that knows architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, assert_never

from torch import nn

from matquant.config.cell import Scope
from matquant.errors import UserError


def backbone(model: nn.Module) -> nn.Module:
    """The model without its language-model head: embedding, blocks, final norm."""
    return model.get_submodule("model")


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, first to last; UserError for an architecture whose blocks are not at model.layers."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(model).__name__} is not supported: its blocks are not in model.layers")
    return list(layers)


def block_name(index: int) -> str:
    """The path of a block inside the model."""
    return f"model.layers.{index}"


def linears(block: nn.Module, scope: Scope) -> dict[str, nn.Linear]:
    """The linear layers of one block that are quantized, by their path inside the block.

    `ffn` is every linear of the feed-forward network, the scope of most of the paper; `ffn_attention` adds those of the
    attention (Table 6).  Fused projections (Phi-3's gate_up_proj and qkv_proj) are one layer here, as they are there.
    """
    match scope:
        case "ffn":
            parts = ("mlp",)
        case "ffn_attention":
            parts = ("self_attn", "mlp")
        case _:
            assert_never(scope)
    found = {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in parts
    }
    if not found:
        raise UserError(f"{type(block).__name__} is not supported: no linear layers for scope={scope} under {parts}")
    return found


SAME_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


def input_names(paths: Iterable[str]) -> dict[str, str]:
    """For every linear layer a name of its input, the same for layers that share one: q, k, v and gate, up.

    What is learned per input channel is shared between them, so that it could be folded into the norm before them.
    """
    names = {}
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        group = next((min(together) for together in SAME_INPUT if leaf in together), leaf)
        names[path] = f"{parent}.{group}"
    return names


def attention(block: nn.Module) -> nn.Module:
    """The self-attention of a block; its forward returns (output, weights)."""
    return block.get_submodule("self_attn")


def feed_forward(block: nn.Module) -> nn.Module:
    return block.get_submodule("mlp")


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets another function answer for a module, for as long as the context lasts."""
    original = module.forward
    module.forward = forward
    try:
        yield
    finally:
        module.forward = original
