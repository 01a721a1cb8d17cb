"""A table as text, before it is drawn: heads, sections between rules, marks and the notes that explain them."""

from __future__ import annotations

from dataclasses import dataclass

MISSING = "\u2013"
"""An en dash, the mark of an empty field."""

DAGGER = "†"
BETTER, WORSE = "▲", "▼"
BOLD_NOTE = (
    "Bold: significantly better than each other row of its data type, paired over the same documents (p < 0.05, "
    "corrected for the number of these rows by Holm's rule)."
)


@dataclass(frozen=True)
class Entry:
    """One printed entry; `best` marks one that is significantly better than its rivals, `quiet` a paper's number."""

    text: str
    best: bool = False
    quiet: bool = False

    @property
    def missing(self) -> bool:
        return self.text == MISSING

    @property
    def marks(self) -> tuple[str, ...]:
        """The names of what the entry is: `missing`, or `best` and `quiet`."""
        if self.missing:
            return ("missing",)
        return tuple(name for name, holds in (("best", self.best), ("quiet", self.quiet)) if holds)


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

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes below the table, with one on bold if something is bold."""
        bold = any(entry.best for section in self.sections for row in section.rows for entry in row)
        return (*self.notes, *([BOLD_NOTE] if bold else []))

    def starts_model(self, number: int) -> bool:
        """True for the first section of each model, if there are several models to tell apart."""
        models = [section.model for section in self.sections]
        return len(set(models)) > 1 and (number == 0 or models[number] != models[number - 1])


def with_error(value: float | None, error: float | None, form: str) -> str:
    """`38.1 ± 0.9`, without the error if there is none; a gap if there is no value."""
    if _is_nan(value):
        return MISSING
    return f"{value:{form}}" if _is_nan(error) else f"{value:{form}} ± {error:{form}}"


def with_errors(value: float, stderr: float, spread: float, form: str, *, named: bool) -> str:
    """`50.0 ± 0.8 docs ± 0.3 seeds`: with the error over documents and, of several seeds, the deviation between them.

    `named`: whether the first is called by its name too, because a row of the table has both.
    """
    text = with_error(value, stderr, form)
    if text == MISSING:
        return text
    docs = " docs" if named and not _is_nan(stderr) else ""
    return text + docs + ("" if _is_nan(spread) else f" ± {spread:{form}} seeds")


def _is_nan(value: float | None) -> bool:
    # Only NaN differs from itself; pandas' own test takes longer than everything else here together.
    return value is None or value != value
