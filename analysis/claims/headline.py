"""The head of README.md: one figure, one table and a few words of a study, between two marks, drawn from results."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from analysis.claims.prose import fill, named, resolve
from analysis.frame import grids
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
    return "\n\n".join([f"![{headline.title}]({image})", fill(words, opened), table, *_grids(headline.rows, opened)])


def _grids(rows: tuple[HeadlineRow, ...], opened: Opened) -> list[str]:
    """One sentence for the grid that all rows share; else, for each row, that of its read-outs."""
    found = {row.row: grid for row in rows if (grid := _grid(row, opened))}
    if len(set(found.values())) == 1:
        return [f"Grid of all rows: {next(iter(found.values()))}."]
    return ["Grids: " + "; ".join(f"{row} on {grid}" for row, grid in found.items()) + "."] if found else []


def _grid(row: HeadlineRow, opened: Opened) -> str:
    """The grid of a row's read-outs in words; empty if it has none."""
    if row.experiment not in opened:
        return ""
    words = (grids.text_of(of) for of in named(opened[row.experiment].rows, row.row).to_dict("records"))
    return " or ".join(dict.fromkeys(filter(None, words)))


def placed(readme: str, study: str, block: str) -> str:
    """README with the block between the marks of a study; ValueError if it has none."""
    first, last = f"<!-- study {study}:", f"<!-- end of study {study} -->"
    found = re.compile(rf"({re.escape(first)}[^>]*-->\n).*?(\n{re.escape(last)})", re.DOTALL)
    if found.search(readme) is None:
        raise ValueError(f"README.md has no place for the study; add the lines {first} ... --> and {last}")
    return found.sub(lambda marks: f"{marks[1]}\n{block}\n{marks[2]}", readme, count=1)
