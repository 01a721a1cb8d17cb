"""Matryoshka quantization (arXiv:2502.06786): one nested checkpoint, read at every precision.

    model, tokenizer = matquant.load("DIR or hub id", "int3")     a transformers model at 3 bits
    matquant.reread(model, "int8")                                 another precision, in place

Rooms, each above those it may use: serving; training and search; algorithms and runs; models and parallel; codes;
config.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from matquant.registration import register_with_transformers

if TYPE_CHECKING:
    from matquant.notation import Plan, Slice
    from matquant.serving.load import load, reread
    from matquant.serving.with_transformers import MatQuantConfig

__all__ = ["MatQuantConfig", "Plan", "Slice", "load", "reread"]

_PLACES = {
    "MatQuantConfig": "matquant.serving.with_transformers",
    "Plan": "matquant.notation",
    "Slice": "matquant.notation",
    "load": "matquant.serving.load",
    "reread": "matquant.serving.load",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: torch and transformers take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_transformers()
