"""Keys by the kind of their values: text as it stands, or a list.  Both are read off the typed configuration."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from matquant.config.cell import BaseSpec, GridSpec, ModelSpec, TextSpec
from matquant.config.setup import ClusterSpec, Paths, Readout, SearchSpec, Tracking

PLACES: dict[str, Any] = {
    "model": ModelSpec,
    "data": TextSpec,
    "base": BaseSpec,
    "grid": GridSpec,
    "readout": Readout,
    "readout.perplexity": TextSpec,
    "readout.search": SearchSpec,
    "tracking": Tracking,
    "paths": Paths,
    "cluster": ClusterSpec,
}
"""The types of what stands below a key."""
TEXTS = {"name"}
LISTS = {"bits.widths", "distill.terms", "objective"}
"""Keys that no type above has."""


@cache
def is_text(key: str) -> bool:
    """True for a key whose value is free text: a path, a name, a revision."""
    return key in TEXTS or any(
        not _is_list(annotation) and not {str, Path}.isdisjoint(leaves(annotation)) for annotation in _annotations(key)
    )


@cache
def is_list(key: str) -> bool:
    return key in LISTS or any(map(_is_list, _annotations(key)))


@cache
def is_list_of_text(key: str) -> bool:
    return key == "objective" or any(
        _is_list(annotation) and str in get_args(annotation) for annotation in _annotations(key)
    )


def _annotations(key: str) -> Iterator[Any]:
    place, _, name = key.rpartition(".")
    for spec in leaves(PLACES.get(place)):
        if isinstance(spec, type) and issubclass(spec, BaseModel) and name in spec.model_fields:
            yield spec.model_fields[name].annotation


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple)


def leaves(annotation: Any) -> set[Any]:
    """The types that a union is made of; a Literal is none of them."""
    if get_origin(annotation) is Literal or annotation is None:
        return set()
    inner = get_args(annotation)
    if not inner or get_origin(annotation) in (dict, list, tuple):
        return {annotation}
    return set().union(*map(leaves, inner))
