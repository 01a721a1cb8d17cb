"""The language-model head of a model apart from its backbone: logits from the last hidden states.

Quantization reaches blocks alone, so the head of a quantized model is that of the unquantized one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    answer = output_type(last_hidden_state=hidden.unsqueeze(0))
    shell = _answering(model, path_of_backbone(model), lambda *_, **__: answer)
    return shell(input_ids=hidden.new_zeros((1, 1), dtype=torch.long), use_cache=False).logits[0]


def _answering(module: nn.Module, path: str, forward: Callable[..., Any]) -> nn.Module:
    """A module in which another function answers for the part at a path; they share all else."""
    assert "forward" not in vars(module) or not path, "a forward that belongs to one module answers for no other"
    shell = copy(module)
    if path:
        name, _, rest = path.partition(".")
        shell._modules = {**module._modules, name: _answering(module.get_submodule(name), rest, forward)}
    else:
        shell.forward = forward
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
