"""The study of a notebook: its verdicts, its claims, the figures and tables of its document.

from analysis.notebooks.shown_claims import open_claims

study = open_claims("NAME")
study.verdicts()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.claims.definition import study_folder
from analysis.claims.document import GAP, beside, figures_of
from analysis.claims.study import open_parts
from analysis.claims.verdict_tables import claims_table, tally
from analysis.notebooks.show import ShownPlot, ShownTable, ShownText

if TYPE_CHECKING:
    from analysis.claims.cases import Opened
    from analysis.claims.definition import StudyDefinition


@dataclass(frozen=True)
class ShownClaims:
    """A study with its claims, and its experiments that exist."""

    study: StudyDefinition
    opened: Opened

    def claims(self) -> ShownTable:
        """Every claim with what was measured and the verdict."""
        return ShownTable(claims_table(self.study, self.opened))

    def verdicts(self) -> ShownText:
        """The number of cases with each verdict, without checks."""
        return ShownText(tally(self.study, self.opened).split("; "))

    def figure(self, experiment: str, name: str) -> ShownPlot | ShownText:
        """A figure of the document, or a sentence where its results are missing."""
        part = next(part for part in self.study.parts if part.name == experiment)
        plots = figures_of(part, self.opened[experiment])
        return ShownPlot(plots[name]) if name in plots else ShownText([f"{experiment}, {name}: {GAP}."])

    def beside_paper(self, experiment: str, number: int) -> ShownTable:
        """Table `number` of MatQuant, ours in its last columns."""
        return ShownTable(beside(number, self.opened[experiment]))


def open_claims(name: str, *overrides: str) -> ShownClaims:
    """A study of studies/, with its results."""
    folder = study_folder(name)
    study = folder.definition()
    return ShownClaims(study, open_parts(folder, study, *overrides))
