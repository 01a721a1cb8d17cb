"""Sentences about command lines that are refused."""

from __future__ import annotations

import pytest

from matquant.config.study import load_study
from matquant.errors import UserError


def refusal(*overrides: str) -> str:
    """The sentence about a command line that is refused."""
    with pytest.raises(UserError) as raised:
        load_study(overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)
