"""Slow, obvious twin of `matquant.serving.engines.humming_layout`: reads what was written, one code after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def read_codes(words: Tensor, bits: int) -> Tensor:
    """The codes of every row: its words are one long number, of which each code is the next `bits` bits."""
    rows = []
    for row in words.tolist():
        stream = sum((word % 2**32) << (32 * place) for place, word in enumerate(row))
        rows.append([stream >> (bits * number) & (2**bits - 1) for number in range(32 * len(row) // bits)])
    return torch.tensor(rows)


def read_weight(tensors: Mapping[str, Tensor], name: str, schema: Mapping[str, Any]) -> Tensor:
    """The weights of a layer as the library's own dequantization defines them, in float32."""
    codes = read_codes(tensors[f"{name}.weight"], int(schema["b_dtype"].removeprefix("uint")))
    groups = tensors[f"{name}.weight_scale"].shape[1]
    assert codes.shape[1] // groups == (schema["group_size"] or codes.shape[1])
    scale, zero = (
        tensors[f"{name}.{kind}"].float().repeat_interleave(codes.shape[1] // groups, 1)
        for kind in ("weight_scale", "zero_point")
    )
    return (codes.float() - zero) * scale


def schema_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The schema that vLLM gives a layer of its own name: None for one that stays as it is.

    An entry of `dynamic` is a sign, a colon and an expression that fits the beginning of a name.
    """
    entries = [(key[0], re.match(key[2:], name), value) for key, value in config["dynamic"].items()]
    if "lm_head" in name or any(found for sign, found, _ in entries if sign == "-"):
        return None
    override = next((value for sign, found, value in entries if sign == "+" and found), {})
    return {**config, **override}
