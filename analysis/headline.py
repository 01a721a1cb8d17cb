"""The head of README.md: one figure, one table and a few words of the study, between two marks, drawn from results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.drawing import markdown_rows
from analysis.prose import fill, resolve
from analysis.typeset import Entry, Section, Table

if TYPE_CHECKING:
    from analysis.show import OpenStudy

FIGURE = ("headline", "pareto")
"""The experiment and the figure of `gallery` that stand for the study."""

WIDTHS = ("int8", "int6", "int4", "int3", "int2")
MISSING = "–"
BLOCK = re.compile(r"(<!-- study:[^>]*-->\n).*?(\n<!-- end of study -->)", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A row: read-outs of one method, whose label is `row` in `experiment`; at its own width `parent` is read as is."""

    algorithm: str
    words: str
    experiment: str
    row: str
    parent: str | None = None

    def address(self, width: str) -> str:
        row = self.parent if self.parent and width == WIDTHS[0] else self.row
        return f"{self.experiment}/{row}/{width}/log_pplx"


def _lines(name: str, experiment: str, nested: tuple[str, str]) -> tuple[Line, ...]:
    baseline = f"Baseline ({name})"
    return (
        Line(name, "int8, sliced: one model", experiment, f"Sliced int8 ({name})", baseline),
        Line("", "Baselines: five models", experiment, baseline),
        Line("", f"MatQuant {nested[0]}: one model", nested[1], f"MatQuant ({name})"),
    )


LINES = (
    *_lines("OmniQuant", "omniquant", ("{8, 4, 2}", "omniquant")),
    *_lines("QAT", "qat", ("{8, 4, 2}", "qat")),
    *_lines("GPTQ", "gptq", ("{8, 4, 3}", "mixnmatch")),
)
HEADS = ("Algorithm", "Log perplexity, nats per token ↓", *WIDTHS)


def headline_table(opened: Mapping[str, OpenStudy]) -> Table:
    """Log perplexity at every width: of one sliced model, of an explicit model for each width, of one nested model."""
    rows = tuple(
        tuple(map(Entry, (line.algorithm, line.words, *(resolve(line.address(w), opened) or MISSING for w in WIDTHS))))
        for line in LINES
    )
    return Table(HEADS, (Section("", "", rows),), ())


def headline(opened: Mapping[str, OpenStudy], words: str, image: str) -> str:
    """The block in markdown; `words` are placed under the figure, `image` is its path as README names it."""
    title = "Task average and log perplexity against bits: one MatQuant checkpoint, sliced int8, explicit baselines"
    return "\n\n".join([f"![{title}]({image})", fill(words.strip(), opened), markdown_rows(headline_table(opened))])


def placed(readme: str, block: str) -> str:
    """README with the block between its marks; ValueError where it has none."""
    if BLOCK.search(readme) is None:
        raise ValueError("README.md has no place for the study: <!-- study: ... --> and <!-- end of study -->")
    return BLOCK.sub(lambda found: f"{found[1]}\n{block}\n{found[2]}", readme, count=1)
