"""Tables and figures as files, and as the parts of a page with these files as downloads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.figures.style import TEXT, save_figure
from analysis.figures.told import data_of, points_of
from analysis.page.drawing import plain_page
from analysis.page.svg import picture_of
from analysis.report.files import csv_of, downloads_of, write_text
from analysis.tables.drawing import document, latex_text, to_latex, to_markdown
from matquant.runs.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analysis.figures.gallery import Plot
    from analysis.page.parts import Picture, ShownTable
    from analysis.report.files import ReportPaths

FORMS_OF_A_TABLE = ("md", "tex", "csv", "html")


def table_files(stem: Path) -> list[Path]:
    return [stem.with_name(f"{stem.name}.{form}") for form in FORMS_OF_A_TABLE]


def written_table(shown: ShownTable, numbers: pd.DataFrame, stem: Path, *, is_document: bool = True) -> ShownTable:
    """Writes the four forms of a table, and gives it the two that can be downloaded.

    `is_document`: the LaTeX compiles on its own; otherwise it is for \\input.
    """
    markdown, latex, csv, html = table_files(stem)
    write_text(markdown, to_markdown(shown.table))
    drawn = to_latex(shown.table)
    write_text(latex, document([drawn]) if is_document else drawn)
    write_text(csv, csv_of(numbers))
    found = replace(shown, downloads=downloads_of([csv, latex]))
    write_text(html, plain_page(shown.title, [found]))
    return found


def written_picture(plot: Plot, paths: ReportPaths, forms: Sequence[str]) -> tuple[Picture, list[Path]]:
    """Writes every form of a figure, SVG first, at each of its widths, widest first, with its data and its LaTeX."""
    drawn, files = [], []
    for width in plot.widths:
        figure = plot.draw(width)
        name = plot.name if width == max(plot.widths) else f"{plot.name}_column"
        for form in forms:
            write_beside(paths.figure(name, form), partial(save_figure, figure, form=form))
            files.append(paths.figure(name, form))
        # Read after the figure was saved, which lays it out.
        drawn.append((paths.figure(name, "svg").read_text(encoding="utf-8"), points_of(figure)))
        if width == max(plot.widths):
            files.append(
                write_text(paths.figure(name, "csv"), data_of(figure).to_csv(index=False, float_format="%.7g"))
            )
            files.append(write_text(paths.figure(name, "tex"), _latex(plot, width)))
    wanted = [paths.figure(plot.name, form) for form in ("csv", "tex", "pdf")]
    return picture_of(plot, drawn, downloads_of(path for path in wanted if path in files)), files


def _latex(plot: Plot, width: float) -> str:
    """A float that places the PDF unscaled, over both columns where it is as wide as the text."""
    environment = "figure*" if width == TEXT else "figure"
    caption = latex_text(" ".join(filter(None, (f"{plot.title}.", plot.note))))
    return "\n".join(
        [
            rf"\begin{{{environment}}}",
            r"\centering",
            rf"\includegraphics{{{plot.name}.pdf}}",
            rf"\caption{{{caption}}}",
            rf"\label{{fig:{plot.name}}}",
            rf"\end{{{environment}}}",
            "",
        ]
    )
