"""A Hugging Face folder with quantized layers in a layout of their own, and all other weights as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from matquant.models.layers.experts import together
from matquant.models.layers.linear_layers import as_stored
from matquant.models.layers.stored_layers import parameter_of


def write_model(
    folder: Path,
    model: PreTrainedModel,
    layers: Iterable[str],
    *,
    quantization_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes config.json and the shards of a model without the weights of some layers, and with `tensors` besides."""
    with as_stored(model), together(model):
        quantized = {parameter_of(model, name) for name in layers}
        rest = {name: tensor for name, tensor in model.state_dict().items() if name not in quantized}
        before = getattr(model.config, "quantization_config", None)
        model.config.quantization_config = dict(quantization_config)
        try:
            model.save_pretrained(folder, state_dict={**rest, **(tensors or {})})
        finally:
            if before is None:
                delattr(model.config, "quantization_config")
            else:
                model.config.quantization_config = before
