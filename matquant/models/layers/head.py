"""The language-model head of a model apart from its backbone: logits from the last hidden states.

Quantization reaches blocks alone, so the head of a quantized model is that of the unquantized one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from matquant.models.layers.families import backbone, forward_replaced


def logits_of(
    model: nn.Module, hidden: Float[Tensor, "positions hidden"], output_type: type[ModelOutput]
) -> Float[Tensor, "positions vocabulary"]:
    """Logits by the whole model with its backbone's answer given: its own scaling and soft-capping too.

    `output_type`: the class of what the backbone returns.
    """
    answer = output_type(last_hidden_state=hidden.unsqueeze(0))
    with forward_replaced(backbone(model), lambda *_, **__: answer):
        return model(input_ids=hidden.new_zeros((1, 1), dtype=torch.long), use_cache=False).logits[0]


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
