"""The losses of MatGPTQ's programs on the way, told from the files: zeros and orders of columns that were not packed.

Its packer keeps codes and scales alone.  Packed, an asymmetric checkpoint is read with the wrong zeros, and one in the
order of activations with its columns exchanged.  Beside the unquantized model both are plain, and so are scales that
were never set.  Without it only zeros can be told: an asymmetric group is spread from its first code to its last, and a
symmetric one reaches a single end of the codes, that of its largest magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from matquant.codes.nested import NestedWeight
from matquant.codes.quantizers import grouped
from matquant.errors import UserError
from matquant.notation import Slice

FEW = 4
"""The codes from an end within which an end counts as reached: compensation moves weights after the range was found."""
TOO_MANY = 0.5
"""The share of groups with both ends reached, above which a checkpoint was asymmetric.

Measured with their algorithm on layers of SmolLM2, for groups of 32 and 128, four sets of widths, and inputs with and
without correlation: at most 0.13 of symmetric groups, at least 0.74 of asymmetric ones.
"""
SHIFTED = 1 / 3
"""The share of the squared error that whole groups have in common, above which their zeros are wrong.

Measured as above: at most 0.09 with the right zeros, at least 0.57 with 128 in the place of others.
"""
TOLD_BY_MODEL = ", or give --model MODEL, the unquantized one, if its weights are like that"
PACKED_ASYMMETRIC = "pack_quantized_model.py has dropped its zeros; import the raw folder of quant.py instead"


def refuse_reaching_both_ends(layers: Mapping[str, NestedWeight], or_else: str = TOLD_BY_MODEL) -> None:
    """Refuses a packed checkpoint whose groups are spread over all codes, as asymmetric ones are."""
    reached = {name: _reaching_both_ends(layer) for name, layer in layers.items()}
    groups = sum(map(len, reached.values()))
    share = sum(int(one.sum()) for one in reached.values()) / groups
    if share > TOO_MANY:
        worst = max(reached, key=lambda name: float(reached[name].float().mean()))
        raise UserError(
            f"{share:.0%} of the {groups} groups reach both ends of the codes (most of all in {worst}), so that this "
            f"checkpoint was asymmetric, and {PACKED_ASYMMETRIC}{or_else}"
        )


def _reaching_both_ends(layer: NestedWeight) -> Tensor:
    codes = grouped(layer.codes, layer.grid.scale.shape[1])
    return ((codes.amin(-1) <= FEW) & (codes.amax(-1) >= (1 << layer.parent_bits) - 1 - FEW)).flatten()


def refuse_unlike(layers: Mapping[str, NestedWeight], model: nn.Module, title: str) -> None:
    """Refuses a checkpoint that is not of a model, or that has lost its zeros or the order of its columns."""
    for name, layer in layers.items():
        _refuse_unlike(name, layer, weight_of(name, layer, model, title), title)


def weight_of(name: str, layer: NestedWeight, model: nn.Module, title: str) -> Tensor:
    """The weight of a layer in a model; UserError if the model has no such linear layer."""
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"{title} has no layer {name}; name the model that was quantized by --model MODEL") from error
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or not isinstance(weight, Tensor) or weight.shape != layer.codes.shape:
        found = type(module).__name__ if not isinstance(weight, Tensor) else tuple(weight.shape)
        raise UserError(
            f"{name} is {found} in {title} and {tuple(layer.codes.shape)} in its codes; name the model that was "
            "quantized by --model MODEL"
        )
    return weight.detach()


@torch.no_grad()
def _refuse_unlike(name: str, layer: NestedWeight, weight: Tensor, title: str) -> None:
    weight = weight.float()
    error = layer.at(Slice(layer.parent_bits)).weight - weight
    squared = float(error.double().square().sum())
    if squared > 0 and squared >= float(weight.double().square().sum()):
        raise UserError(
            f"{name} at int{layer.parent_bits} is further from the weights of {title} than zeros are: its scales were "
            "never set (quant.py without --group_size), or the order of its columns was lost in packing "
            "(--act_order), or another model was quantized; import the raw folder, quantize again with "
            "--group_size 128, or name the model that was quantized by --model MODEL"
        )
    by_group = grouped(error, layer.grid.scale.shape[1]) / layer.grid.scale.unsqueeze(-1)
    shift = by_group.mean(-1).square().sum() * by_group.shape[-1]
    if float(shift) > SHIFTED * float(by_group.square().sum()) and float(by_group.square().mean()) > 1:
        raise UserError(
            f"{name} differs from the weights of {title} by shifts of whole groups, so that its zeros are wrong: this "
            f"checkpoint was asymmetric, and {PACKED_ASYMMETRIC}"
        )
