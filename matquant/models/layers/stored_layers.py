"""A model as its checkpoint names it: every layer that can be quantized as a linear layer of its own.

transformers stores some layers transposed (`Conv1D`) or many in one (fused experts).  Whatever reads or writes the
layers of a nested checkpoint by name works inside `as_quantized`, and the model is again as transformers builds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from matquant.models.layers.experts import SeparateExperts, of_all_experts, separate_experts
from matquant.models.layers.linear_layers import as_linear, restore_stored


@contextmanager
def as_quantized(model: nn.Module) -> Iterator[None]:
    """Gives a model linear layers under the names of a checkpoint for as long as the context lasts."""
    as_linear(model)
    separate_experts(model)
    try:
        yield
    finally:
        for path, module in list(model.named_modules()):
            if isinstance(module, SeparateExperts):
                model.set_submodule(path, module.fused())
        restore_stored(model)


def parameter_of(model: nn.Module, layer: str) -> str:
    """The name of the parameter that holds a quantized layer's weights in a model as transformers builds it.

    KeyError if the model has no such layer.
    """
    parameters = dict(model.named_parameters())
    for name in (f"{layer}.weight", of_all_experts(layer)):
        if name in parameters:
            return name
    raise KeyError(layer)
