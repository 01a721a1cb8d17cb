"""A second reading of a nested checkpoint: from the files and `transformers` alone, without a line of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM


@torch.no_grad()
def plain_model(
    architecture: str, config: dict[str, Any], checkpoint: Path | None = None, bits: int = 8
) -> torch.nn.Module:
    """The random model of a specification as `transformers` makes it, with a checkpoint's layers read at some width."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{"vocab_size": 257, **config})).eval()
    if checkpoint is None:
        return model
    layers = json.loads((checkpoint / "nested.json").read_text())["layers"]
    tensors = load_file(checkpoint / "nested.safetensors")
    for name, facts in layers.items():
        codes, scale, zero = (tensors[f"{name}.{part}"].astype(np.float64) for part in ("codes", "scale", "zero"))
        step = 2.0 ** (facts["parent_bits"] - bits)
        codes = np.minimum(np.floor(codes / step + 0.5), 2.0**bits - 1) * step
        per_group = codes.shape[1] // scale.shape[1]
        weight = (codes - zero.repeat(per_group, axis=1)) * scale.repeat(per_group, axis=1)
        if expert := re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)", name):
            experts = model.get_submodule(expert[1])
            fused = experts.get_parameter(expert[3])[int(expert[2])]
            fused.copy_(torch.from_numpy(weight.T if getattr(experts, "is_transposed", True) else weight))
            continue
        layer = model.get_submodule(name)
        if f"{name}.transform.scale" in tensors:
            scale, shift, bias = (tensors[f"{name}.transform.{part}"] for part in ("scale", "shift", "bias"))
            weight = weight / scale
            layer.bias = torch.nn.Parameter(torch.from_numpy(bias - weight @ shift).float())
        weight = weight.T if type(layer).__name__ == "Conv1D" else weight
        layer.weight.copy_(torch.from_numpy(weight))
    return model
