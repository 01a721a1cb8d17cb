"""A study's tables, figures, notebook and HTML page, drawn from result files.

    python -m analysis.report experiment=demo

Nothing is measured here and no model is loaded: a report can be drawn on a laptop from a copied results folder, and
drawn again while an experiment is still running; what is missing is a visible gap.  What has been drawn from the same
is not drawn again: that is known without pandas and matplotlib, which are imported where something has to be drawn.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import cached_property
from typing import TYPE_CHECKING

from analysis.report import unchanged
from analysis.report.files import ReportPaths
from matquant.errors import UserError
from matquant.runs.files import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from analysis.report.building import Numbers
    from matquant.config.study import Study

FORMS = ("svg", "pdf", "png")
"""Of every figure; the page shows the first."""
HELP = """
Draws a study from the results on disk and writes out/<experiment>/:
  table.{md,tex,html,csv}    the summary table; accuracies in the CSV are fractions, log_pplx is in nats per token
  paper.{md,tex,html,csv}    for an experiment that is a table of the paper: that table, ours beneath theirs
  comparisons.csv            every row against its baseline on the same documents: difference, standard error, p-value
  <figure>.{svg,pdf,png}     as wide as the text of a paper; <figure>_column.* as wide as a column
  report.ipynb               the same as a notebook, executed
  report.html                everything on one self-contained page, with how each number was made and what is missing
A report whose files are all there, drawn from the same results by the same code, is left as it is; delete any of its
files to have it drawn again.
"""
EXAMPLES = """
examples:
  python -m analysis.report experiment=demo                          what `python run.py experiment=demo` measured
  python -m analysis.report experiment=demo paths.results=/data/r    results copied from another machine
  python -m analysis.report experiment=demo readout.limit=200        the same cells under another protocol
  python -m analysis.report base=minmax bits=int8                    a single cell

Overrides are those of run.py (python run.py --help lists them): give the ones the results were measured with.
No model is loaded and nothing is measured; `python run.py ...` with the same overrides measures what is missing.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if the report was written, 2 with one line on stderr if it could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to report on, such as experiment=demo")
    parser.add_argument("--no-notebook", action="store_true", help="leave the notebook out, which takes longest")
    options = parser.parse_intermixed_args(arguments)
    try:
        # Hydra is not needed to answer --help, and run.py brings its own study.
        from matquant.config.study import load_study

        report = Report(load_study(options.overrides), options.overrides)
        paths = report.draw(notebook=not options.no_notebook)
        print_text(report.text())
        print(f"report: {paths.html}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; without this, Python complains once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def print_text(text: str) -> None:
    """Prints text on whatever terminal there is; signs that it does not have become question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding))


class Report:
    """A study's report, of which only what has changed is drawn; `overrides` is printed as the way to make it again."""

    def __init__(self, study: Study, overrides: Sequence[str] | None = None) -> None:
        self.study, self.overrides = study, overrides
        self.paths = ReportPaths(study.setup.paths.out / study.name)
        self.sources = unchanged.sources_of(study, overrides)
        self._drawn = unchanged.remembered(self.paths, self.sources)

    def text(self) -> str:
        """The summary table, every problem, and how many results are missing."""
        if self._drawn is not None:
            return self._drawn.text
        from analysis.report.building import text_of

        return text_of(self._numbers)

    def draw(self, *, notebook: bool = False) -> ReportPaths:
        """Sees to it that the files of the report are there; UserError if the folder cannot be written to."""
        require_writable(self.paths.folder, "paths.out")
        drawn = self._drawn
        if drawn is None or not drawn.has(self.paths.html, *self._pictures_and_tables(drawn)):
            from analysis.report.building import build

            files = build(self.study, self._numbers, self.paths, overrides=self.overrides, forms=FORMS)
            drawn = self._remember(unchanged.Drawn(self.sources, self.text(), {}).with_files(files))
        if notebook and not drawn.has(self.paths.notebook):
            from analysis.report.notebook import write_report_notebook

            write_report_notebook(self.overrides or [], self.paths.notebook)
            self._remember(drawn.with_files([self.paths.notebook]))
        return self.paths

    def _pictures_and_tables(self, drawn: unchanged.Drawn) -> Sequence[Path]:
        """The files of a report but its notebook, which is made only for those who ask for one."""
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


if __name__ == "__main__":
    sys.exit(main())
