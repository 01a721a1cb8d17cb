"""A linear layer that keeps its weights at r bits in memory, and expands them when it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from matquant.codes.nested import Transform
from matquant.codes.planes import to_planes, top_bits
from matquant.codes.quantizers import Grid
from matquant.codes.sliced import SlicedWeight
from matquant.notation import Slice


class AwaitedLinear(nn.Linear):
    """A linear layer whose weight is never made: a packed layer takes its place before it is called."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        # The shape and the dtype alone, and no parameter: for that, loaders would make room.
        self.__dict__["weight"] = torch.empty_like(linear.weight, device="meta")
        kept: Any = self
        kept._is_hf_initialized = self.weight._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]


def await_codes(model: nn.Module, layer: str) -> None:
    """Lets a plain linear layer of a model that is being loaded take no memory; other kinds are left alone.

    Layers that are stored transposed, or many in one, have to be loaded before they can be told apart.
    """
    try:
        linear = model.get_submodule(layer)
    except AttributeError:
        return
    if type(linear) is nn.Linear:
        model.set_submodule(layer, AwaitedLinear(linear))


class PackedLinear(nn.Module):
    """A linear layer in r bits a weight (r + 1 with extra precision), beside its scales and zeros.

    The weights are expanded when the layer is called, in the dtype of the layer that it replaces, and forgotten after
    the product.  They are those of `SlicedWeight.affine`, so outputs are those of the expanded model to the last bit.
    """

    like: Tensor
    """Empty, and moved and cast with the model: the dtype that weights are expanded to."""

    def __init__(self, linear: nn.Linear, weight: SlicedWeight) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        empty = linear.weight.detach().new_empty(0, device=weight.codes.device)
        self.register_buffer("like", empty, persistent=False)
        self.bias = linear.bias
        self.read(weight)

    def read(self, weight: SlicedWeight) -> None:
        """Holds another slice of the same layer."""
        self.part, self.grid, self.transform = weight.part, weight.grid, weight.transform
        self.planes = torch.stack(to_planes(weight.codes, weight.num_bits))
        if self.transform is not None and self.transform.shift is not None:
            bias = weight.affine().bias
            assert bias is not None
            self.bias = nn.Parameter(bias.to(self.like.dtype), requires_grad=False)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The expanded weights."""
        codes = top_bits(list(self.planes), self.in_features)
        return SlicedWeight(codes, self.grid, self.part, self.transform).affine().weight.to(self.like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves codes and grid with the model; neither is cast, since other grids would be other weights."""
        super()._apply(fn, recurse)
        device = self.like.device
        self.planes = self.planes.to(device)
        self.grid = Grid(*(part.to(device) for part in self.grid))
        self.transform = None if self.transform is None else self.transform.each(lambda part: part.to(device))
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The whole layer, for `state_dict`: codes are nothing without their grid."""
        transform = None if self.transform is None else dict(self.transform.tensors)
        return {"planes": self.planes, **self.grid._asdict(), "part": str(self.part), "transform": transform}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        device = self.like.device
        self.part, self.planes = Slice.parse(state["part"]), state["planes"].to(device)
        self.grid = Grid(state["scale"].to(device), state["zero"].to(device))
        transform = state["transform"]
        self.transform = None if transform is None else Transform(**transform).each(lambda part: part.to(device))

    @property
    def num_bytes(self) -> int:
        """The bytes of codes, scales and zeros."""
        return sum(part.numel() * part.element_size() for part in (self.planes, *self.grid))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.part}"
