"""The language-model head of a model apart from its backbone: logits from the last hidden states.

Quantization reaches blocks alone, so the head of a quantized model is that of the unquantized one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from matquant.models.layers.families import backbone, path_of_backbone


def logits_of(
    model: nn.Module, hidden: Float[Tensor, "positions hidden"], output_type: type[ModelOutput]
) -> Float[Tensor, "positions vocabulary"]:
    """Logits by the whole model with its backbone's answer given: its own scaling and soft-capping too.

    `output_type`: the class of what the backbone returns.  The model stays as it is, so that other threads may read
    with it meanwhile.
    """
    answering = Answering(output_type(last_hidden_state=hidden.unsqueeze(0)))
    shell = _with_module(model, path_of_backbone(model), answering)
    return shell(input_ids=hidden.new_zeros((1, 1), dtype=torch.long), use_cache=False).logits[0]


class Answering(nn.Module):
    """A module that answers the same to everything."""

    def __init__(self, answer: ModelOutput) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: object, **__: object) -> ModelOutput:
        return self.answer


def _with_module(module: nn.Module, path: str, other: nn.Module) -> nn.Module:
    """A module with another one at a path inside it; all else is shared, and the module itself stays as it is."""
    name, _, rest = path.partition(".")
    inner = _with_module(module.get_submodule(name), rest, other) if rest else other
    shell = copy(module)
    shell._modules = {**module._modules, name: inner}
    return shell


class Listener:
    """The last hidden states of the pass that a model made last; see `listening`."""

    hidden: Float[Tensor, "batch tokens hidden"]
    output_type: type[ModelOutput]


@contextmanager
def listening(model: nn.Module) -> Iterator[Listener]:
    """Keeps what the backbone tells the head, as long as the context lasts."""
    listener = Listener()

    def keep(_: nn.Module, __: object, output: Any) -> None:
        listener.hidden, listener.output_type = output.last_hidden_state, type(output)

    handle = backbone(model).register_forward_hook(keep)
    try:
        yield listener
    finally:
        handle.remove()
