"""The head of README.md: one figure, one table and a few words of a study, between two marks, drawn from results."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from analysis.claims.prose import fill, resolve
from analysis.tables.drawing import markdown_rows
from analysis.tables.typeset import Entry, Section, Table

if TYPE_CHECKING:
    from analysis.claims.cases import Opened
    from analysis.claims.definition import Headline, HeadlineRow

WIDTHS = ("int8", "int6", "int4", "int3", "int2")
MISSING = "–"
HEADS = ("Algorithm", "Log perplexity, nats per token ↓", *WIDTHS)


def headline_table(rows: tuple[HeadlineRow, ...], opened: Opened) -> Table:
    """Log perplexity at every width, a row for each method."""
    drawn = tuple(
        tuple(map(Entry, (row.algorithm, row.words, *(resolve(address(row, w), opened) or MISSING for w in WIDTHS))))
        for row in rows
    )
    return Table(HEADS, (Section("", "", drawn),), ())


def address(row: HeadlineRow, width: str) -> str:
    """The number of a row at a width, as `prose` names it."""
    label = row.parent if row.parent and width == WIDTHS[0] else row.row
    return f"{row.experiment}/{label}/{width}/log_pplx"


def headline_block(headline: Headline, opened: Opened, words: str, image: str) -> str:
    """The block in markdown; `words` are placed under the figure, `image` is its path as README names it."""
    table = markdown_rows(headline_table(headline.rows, opened))
    return "\n\n".join([f"![{headline.title}]({image})", fill(words, opened), table])


def placed(readme: str, study: str, block: str) -> str:
    """README with the block between the marks of a study; ValueError if it has none."""
    first, last = f"<!-- study {study}:", f"<!-- end of study {study} -->"
    found = re.compile(rf"({re.escape(first)}[^>]*-->\n).*?(\n{re.escape(last)})", re.DOTALL)
    if found.search(readme) is None:
        raise ValueError(f"README.md has no place for the study; add the lines {first} ... --> and {last}")
    return found.sub(lambda marks: f"{marks[1]}\n{block}\n{marks[2]}", readme, count=1)
