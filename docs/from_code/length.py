"""The length of a page: no reader wants more than 1,500 words of one."""

from __future__ import annotations

MOST_WORDS = 1500
MOST_OF_THE_README = 600


def num_words(text: str) -> int:
    """Words as `wc -w` counts them, those of tables and code too."""
    return len(text.split())
