"""A table as text, whatever it is drawn on: heads, sections between rules, marks and the notes that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

MISSING = "\u2013"
"""An en dash: what a printed table puts in an empty field."""

DAGGER = "†"
BETTER, WORSE = "▲", "▼"
BOLD_NOTE = "Bold: the best value, as printed, among the rows of a data type."


@dataclass(frozen=True)
class Entry:
    """One printed entry; `best` marks the best value of its data type, `quiet` what stands back: a paper's number."""

    text: str
    best: bool = False
    quiet: bool = False

    @property
    def missing(self) -> bool:
        return self.text == MISSING


@dataclass(frozen=True)
class Section:
    """The rows of one model and data type, between two rules."""

    model: str
    data_type: str
    rows: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True)
class Table:
    """Column heads, sections from wide to narrow, and notes; `groups` stand over the heads, each with its span.

    The first `num_labels` columns hold names, the others numbers; `lines` rows belong together, ours under a paper's.
    """

    heads: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    groups: tuple[tuple[str, int], ...] = ()
    num_labels: int = 2
    lines: int = 1
    caption: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(section.model for section in self.sections))

    def starts_model(self, number: int) -> bool:
        """True for the first section of each model, if there are several models to tell apart."""
        models = [section.model for section in self.sections]
        return len(set(models)) > 1 and (number == 0 or models[number] != models[number - 1])


def with_error(value: float, error: float, form: str) -> str:
    """`38.1 ± 0.9`, without the error where there is none, and a gap where there is no value."""
    if pd.isna(value):
        return MISSING
    return f"{value:{form}}" + ("" if pd.isna(error) else f" ± {error:{form}}")


def winners(texts: Sequence[str], sign: int) -> set[int]:
    """The rows with the best value as printed, so that two equal entries are both marked or neither."""
    printed = {row: sign * float(text.split()[0]) for row, text in enumerate(texts) if text != MISSING and sign}
    return {row for row, value in printed.items() if value == max(printed.values())} if len(printed) > 1 else set()
