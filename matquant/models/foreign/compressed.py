"""Layers of compressed-tensors, decompressed by its own library, each by the scheme of its config group."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from matquant.errors import UserError
from matquant.stored.foreign_layers import scheme_of

PACKAGE = "compressed_tensors"
READ_SINCE = "0.18"


def require_library() -> None:
    """Refuses to read the format where its package is not installed."""
    if find_spec(PACKAGE) is None:
        raise UserError(
            "compressed-tensors files are read with the package of that name, which is not installed; "
            f"pip install 'compressed-tensors>={READ_SINCE}'"
        )


def compressed_weight(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], bits: int) -> Float[Tensor, "out in"]:
    """A layer; what its configuration says of activations is left aside."""
    require_library()
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme.model_validate(dict(scheme_of(facts["layer"], facts)))
    known = {**facts, "format": None} if facts.get("format") == "mixed-precision" else facts
    format = scheme.format or known.get("format") or infer_module_format(nn.Linear, scheme)
    compressor: Any = BaseCompressor.get_value_from_registry(str(getattr(format, "value", format)))
    local = {name: tensor for name, tensor in tensors.items() if not name.startswith(("input_", "output_"))}
    return compressor.decompress(local, scheme)["weight"].float()
