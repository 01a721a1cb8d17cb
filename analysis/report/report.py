"""A study's tables, figures, notebook and HTML page, drawn from result files.

Nothing is measured here and no model is loaded: a report can be drawn on a laptop from a copied results folder, and
drawn again while an experiment is still running; a missing number is a visible gap.  A report whose sources are
unchanged is not drawn again; pandas and matplotlib are imported only if something has to be drawn.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING

from analysis.frame.axes import USUAL_AXES, require_known
from analysis.report import unchanged
from analysis.report.files import ReportPaths
from matquant.command.parsing import parse
from matquant.config.study import load_study
from matquant.runs.files import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from analysis.report.building import Numbers
    from matquant.config.study import Study

FORMS = ("svg", "pdf", "png")
"""The formats of every figure; the page shows the first."""


def main(arguments: Sequence[str]) -> None:
    given = parse("report", arguments)
    measures = require_known(given.pareto.split(","))
    report = Report(load_study(given.overrides), given.overrides, measures)
    paths = report.draw(notebook=not given.no_notebook)
    print_text(report.text())
    print(f"report: {paths.html}", flush=True)


def print_text(text: str) -> None:
    """Prints text on any terminal; characters that it does not have become question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding))


class Report:
    """A study's report, of which only what has changed is drawn; `overrides` is printed as the way to make it again.

    `measures`: those on the vertical axes of Pareto plots.
    """

    def __init__(
        self, study: Study, overrides: Sequence[str] | None = None, measures: Sequence[str] = USUAL_AXES
    ) -> None:
        self.study, self.overrides, self.measures = study, overrides, measures
        self.paths = ReportPaths(study.setup.paths.out / study.name)
        self.sources = unchanged.sources_of(study, overrides, measures)
        self._drawn = unchanged.remembered(self.paths, self.sources)

    def text(self) -> str:
        """The summary table, every problem, and how many results are missing."""
        if self._drawn is not None:
            return self._drawn.text
        from analysis.report.building import text_of

        return text_of(self._numbers)

    def draw(self, *, notebook: bool = False) -> ReportPaths:
        """Draws those files of the report that are out of date; UserError if the folder cannot be written to."""
        require_writable(self.paths.folder, "paths.out")
        drawn = self._drawn
        if drawn is None or not drawn.has(self.paths.html, *self._pictures_and_tables(drawn)):
            from analysis.report.building import build

            files = build(
                *(self.study, self._numbers, self.paths),
                overrides=self.overrides,
                forms=FORMS,
                measures=self.measures,
            )
            drawn = self._remember(unchanged.Drawn(self.sources, self.text(), {}).with_files(files))
        if notebook and not drawn.has(self.paths.notebook):
            from analysis.report.notebook import write_report_notebook

            write_report_notebook(self.overrides or [], self.paths.notebook)
            self._remember(drawn.with_files([self.paths.notebook]))
        return self.paths

    def _pictures_and_tables(self, drawn: unchanged.Drawn) -> Sequence[Path]:
        """All files of a report but its notebook, which is made only on request."""
        return [self.paths.folder / name for name in drawn.files if name != self.paths.notebook.name]

    def _remember(self, drawn: unchanged.Drawn) -> unchanged.Drawn:
        unchanged.remember(self.paths, drawn)
        self._drawn = drawn
        return drawn

    @cached_property
    def _numbers(self) -> Numbers:
        from analysis.report.building import numbers_of

        return numbers_of(self.study)


def build_report(study: Study, overrides: Sequence[str] | None = None) -> ReportPaths:
    """The report of a study, drawn where it has to be."""
    return Report(study, overrides).draw()
