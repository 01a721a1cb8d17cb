"""GPT-2's `Conv1D`, whose weight is [in, out], as a linear layer, and back again for a folder that others read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.pytorch_utils import Conv1D


class LinearOfConv1D(nn.Linear):
    """A linear layer that is stored as a `Conv1D`."""


def as_linear(model: nn.Module) -> None:
    """Replaces every `Conv1D` of a model by a linear layer that computes the same, in place and one at a time."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(path, _linear_of(module))


@contextmanager
def as_stored(model: nn.Module) -> Iterator[None]:
    """Gives a model back, for as long as the context lasts, the layers that its architecture is saved with."""
    replaced = {path: module for path, module in model.named_modules() if isinstance(module, LinearOfConv1D)}
    try:
        for path, module in replaced.items():
            model.set_submodule(path, _conv1d_of(module))
        yield
    finally:
        for path, module in replaced.items():
            model.set_submodule(path, module)


def restore_stored(model: nn.Module) -> None:
    """Undoes `as_linear`, for good."""
    for path, module in list(model.named_modules()):
        if isinstance(module, LinearOfConv1D):
            model.set_submodule(path, _conv1d_of(module))


def _linear_of(module: Conv1D) -> LinearOfConv1D:
    linear = LinearOfConv1D(module.nx, module.nf, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=module.weight.requires_grad)
    linear.bias = module.bias
    return linear


def _conv1d_of(linear: nn.Linear) -> Conv1D:
    module = Conv1D(0, 0)
    module.nx, module.nf = linear.in_features, linear.out_features
    module.weight = nn.Parameter(linear.weight.detach().T.contiguous())
    module.bias = linear.bias
    return module
