"""The formats of engines: the part of a slice that each can hold, and how faithful it is.

Codes are never changed by an export.  Scales and zeros are: most formats keep them in 16 bits, and many keep a zero as
an integer code.  So a format says of each layer what it holds, as a `SlicedWeight` with the grid as it is stored, and
the difference is judged here, in one place, by the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from matquant.codes.quantizers import Grid
from matquant.codes.sliced import SlicedWeight
from matquant.config.cell import ModelSpec
from matquant.errors import UserError
from matquant.models.layers.experts import SeparateExperts
from matquant.models.layers.linear_layers import LinearOfConv1D
from matquant.notation import Plan, Slice

Layers = Mapping[str, Slice]
"""The slice of every quantized layer, by its path."""


class LayerShape(NamedTuple):
    """The facts of a layer that a format is asked about before any weight is read."""

    part: Slice
    shape: tuple[int, int]
    group_size: int | None
    """None for one group a row."""
    is_symmetric: bool
    """The zero is the middle code of the parent in every group."""
    has_transform: bool


@dataclass(frozen=True)
class Source:
    """A trained cell on its way out: what lies around the quantized layers, and the layers as a plan reads them."""

    model: PreTrainedModel
    """The unquantized model, in the dtype that is written."""
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    shapes: Mapping[str, LayerShape]
    read: Callable[[str], SlicedWeight]
    """A layer as the plan reads it."""
    origin: ModelSpec | None = None
    """The place that the model was read from."""


@runtime_checkable
class Format(Protocol):
    """A way to write one read-out for one kind of engine.  Each lives in a module of its own."""

    @property
    def name(self) -> str: ...

    @property
    def scale_dtype(self) -> torch.dtype | None:
        """The dtype that scales (and real zeros) are kept in; None where float32 is kept."""
        ...

    def refuse(self, source: Source) -> None:
        """Raises UserError with the names of layers that the format cannot hold at all, before anything is read."""
        ...

    def hold(self, name: str, weight: SlicedWeight) -> SlicedWeight:
        """The layer as the format holds it: the same codes on the grid that an engine will read."""
        ...

    def write(self, folder: Path, source: Source, held: Callable[[str], SlicedWeight]) -> None:
        """Fills an empty folder."""
        ...


@runtime_checkable
class Noted(Protocol):
    """A format with something to say of a folder besides how exact it is."""

    def notes(self, source: Source) -> Iterable[str]:
        """One sentence each, which are printed and kept in `export.json`."""
        ...


@dataclass
class Exactness:
    """The distance of what a format holds from what the checkpoint reads, over all layers."""

    dtype: torch.dtype | None
    is_exact: bool = True
    is_scales_alone: bool = True
    """Nothing but the rounding of scales and real zeros to `dtype`."""
    squared_error: float = 0.0
    squared_weight: float = 0.0
    inexact: int = 0
    """The layers whose zeros were rounded."""

    def add(self, read: SlicedWeight, held: SlicedWeight) -> None:
        """Compares one layer."""
        if not torch.equal(read.codes, held.codes):
            raise AssertionError("an export does not change codes")
        if all(torch.equal(ours, theirs) for ours, theirs in zip(read.grid, held.grid, strict=True)):
            self.squared_weight += _square(read.affine().weight)
            return
        self.is_exact = False
        if not _is_rounding(read.grid, held.grid, self.dtype):
            self.is_scales_alone = False
            self.inexact += 1
        weight = read.affine().weight
        self.squared_error += _square(held.affine().weight - weight)
        self.squared_weight += _square(weight)

    @property
    def relative_error(self) -> float:
        """The norm of the difference over that of the weights."""
        return (self.squared_error / self.squared_weight) ** 0.5 if self.squared_weight else 0.0

    def __str__(self) -> str:
        if self.is_exact:
            return "exact"
        if self.is_scales_alone:
            return f"exact up to {str(self.dtype).removeprefix('torch.')} scales"
        return f"inexact: relative weight error {self.relative_error:.2g}"


MOVED = 1 / 8
"""The most codes that a zero may be moved by its rounding; half a code is as much as weights are rounded by."""


def _is_rounding(ours: Grid, theirs: Grid, dtype: torch.dtype | None) -> bool:
    """True if grids differ by the rounding to a dtype and nothing else.

    A zero may be kept as it is, rounded to the dtype, or as the smallest weight -scale * zero.  A dtype that is too
    coarse for it moves it by a part of a code that counts: bfloat16 has whole numbers alone from 128 on.
    """
    if dtype is None:
        return False
    # One rounding of the scale, one of the zero, and one of their product where that is what is kept.
    tolerance = 2 * torch.finfo(dtype).eps
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the finest that the dtype has, next to nothing
    same_scale = torch.isclose(theirs.scale, ours.scale, rtol=tolerance, atol=step)
    same_zero = torch.isclose(theirs.zero, ours.zero, rtol=tolerance, atol=1e-6)
    same_zero &= (theirs.zero - ours.zero).abs() <= MOVED
    smallest = ours.scale * ours.zero
    apart = (theirs.scale * theirs.zero - smallest).abs()
    same_smallest = apart <= tolerance * smallest.abs() + step * (1 + ours.zero.abs())
    same_smallest &= apart <= MOVED * ours.scale.abs() + step * (1 + ours.zero.abs())
    return bool((same_scale & (same_zero | same_smallest)).all())


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def rounded_zeros(weight: SlicedWeight, *, top: int) -> SlicedWeight:
    """A layer whose zeros are integers between 0 and `top`, for a format that keeps them so."""
    return weight._replace(grid=Grid(weight.grid.scale, weight.grid.zero.round().clamp(0, top)))


def in_dtype(weight: SlicedWeight, dtype: torch.dtype) -> SlicedWeight:
    """A layer whose scales and zeros were rounded to a dtype."""
    return weight._replace(grid=Grid(*(part.to(dtype).float() for part in weight.grid)))


FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that engines multiply as one matrix, and so keep at one width."""


def require_fused_alike(shapes: Mapping[str, LayerShape], format: str, others: Container[str] = ()) -> None:
    """Refuses a plan in which layers that an engine fuses have different widths, or are quantized in part.

    `others` are the linear layers of the model that are not quantized.
    """
    for group in FUSED:
        for stem in dict.fromkeys(stem for name in shapes for stem, _, last in [name.rpartition(".")] if last in group):
            widths = {path: str(shapes[path].part) for one in group if (path := f"{stem}.{one}") in shapes}
            left = [path for one in group if (path := f"{stem}.{one}") in others]
            if len(set(widths.values())) > 1 or left:
                found = ", ".join([*(f"{path} {width}" for path, width in widths.items()), *left])
                remedy = "a width, a layout such as pyramid@3, or a plan of evolution_linear keeps them together"
                remedy = "the last of them are not quantized; export dense or nested" if left else remedy
                raise UserError(
                    f"{format}: engines fuse {', '.join(group)} into one matrix of one width, and here they are "
                    f"{found}; {remedy}"
                )


def refuse_layers(format: str, why: str, names: Iterable[str], remedy: str) -> None:
    """Raises UserError that names the layers which a format cannot hold, if there are any."""
    found = list(names)
    if found:
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        raise UserError(f"{format} cannot hold {', '.join(found[:2])}{more}: {why}; {remedy}")


def refuse_transformed(format: str, shapes: Mapping[str, LayerShape]) -> None:
    """Refuses layers whose weights are divided by input channel: they lie on no grid of groups."""
    refuse_layers(
        format,
        "base.transformation divides their weights by input channel after they are quantized, so that they lie on no "
        "grid of groups",
        (name for name, shape in shapes.items() if shape.has_transform),
        "export nested, or a cell of base.transformation=false",
    )


def require_plain_layers(format: str, source: Source) -> None:
    """Refuses layers that are no linear layer of their own in transformers: engines know them by other names."""
    modules = dict(source.model.named_modules())
    together = tuple(f"{path}." for path, module in modules.items() if isinstance(module, SeparateExperts))
    refuse_layers(
        format,
        "transformers keeps them transposed, or in one tensor with those of other experts",
        (name for name in source.shapes if isinstance(modules[name], LinearOfConv1D) or name.startswith(together)),
        "export dense or nested",
    )


def require_causal(format: str, source: Source) -> None:
    """Refuses a model that is no plain language model by the name of its class, which is what a loader goes by."""
    kind = type(source.model).__name__
    if "CausalLM" not in kind:
        raise UserError(
            f"{format} is opened for models of a class ...ForCausalLM alone, and this one is a {kind}; export dense or "
            "nested"
        )


class Record(NamedTuple):
    """The record of an exported folder, `export.json`."""

    format: str
    plan: Plan
    exactness: Exactness
    notes: Sequence[str]
    facts: Mapping[str, Any]

    def dump(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "plan": str(self.plan),
            "exactness": str(self.exactness),
            "relative_error": self.exactness.relative_error,
            "inexact_layers": self.exactness.inexact,
            "notes": list(self.notes),
            **self.facts,
        }
