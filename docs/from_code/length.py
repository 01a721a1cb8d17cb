"""The length of a page: no reader wants more than 1,500 words of one."""

from __future__ import annotations

MOST_WORDS = 1500
TOO_LONG = {"analysis", "evaluation", "experiments"}
"""Pages that are longer and wait to be divided; a test sees to it that a page leaves this list when it is short."""


def num_words(text: str) -> int:
    """Words as `wc -w` counts them, those of tables and code too."""
    return len(text.split())
