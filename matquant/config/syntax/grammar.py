"""Hydra's grammar of one override: what a value is read as, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

RUN = "python run.py -m"
"""The command that takes several values of one key."""


def parsed_override(override: str) -> Override | None:
    """The override as Hydra's grammar reads it; None where it does not."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def sweeper_of(overrides: Sequence[str]) -> str:
    """The sweeper that a command line chooses: `basic`, which goes through products, or one that searches."""
    chosen = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("hydra/sweeper=")]
    return chosen[-1] if chosen else "basic"


def is_searched(overrides: Sequence[str]) -> bool:
    """True if a sweeper draws the points of a multirun from search spaces, such as Optuna's."""
    return sweeper_of(overrides) != "basic"


def as_typed(given: Any) -> str:
    """A value as it is typed."""
    match given:
        case None:
            return "null"
        case bool():
            return str(given).lower()
        case list() | tuple():
            return f"[{','.join(map(as_typed, given))}]"
        case _:
            return str(given)
