"""Draws the document of a study from its results: studies/NAME/document.md, its figures and the head of README.md.

Nothing is measured here.  studies/README.md explains how to write a study of your own.
"""

from __future__ import annotations

import difflib
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.claims.definition import study_folder, study_names
from analysis.claims.document import COMMAND, document
from analysis.claims.headline import placed
from analysis.figures.style import SCREEN_DPI, TEXT, save_figure
from analysis.frame.opened import OpenStudy
from analysis.report.files import write_text
from matquant.checkout import PROJECT
from matquant.command.parsing import parse
from matquant.runs.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.claims.cases import Opened
    from analysis.claims.definition import StudyDefinition, StudyFolder
    from analysis.claims.document import Document

README = PROJECT / "README.md"
SHOWN_LINES = 20


def open_parts(folder: StudyFolder, study: StudyDefinition, *overrides: str) -> Opened:
    """Every existing experiment of a study; `overrides` are those of `matquant run`, as `paths.results=DIR`."""
    from matquant.config.study import load_study

    written = folder.experiments
    parts = [part.name for part in study.parts if part.name in written]
    return {part: OpenStudy(load_study([f"experiment={folder.name}/{part}", *overrides])) for part in parts}


def draw(folder: StudyFolder, *overrides: str) -> Document:
    """The document of a study, with the words that lie in its folder."""
    study = folder.definition()
    return document(folder, study, open_parts(folder, study, *overrides))


def write(drawn: Document, folder: StudyFolder, readme: Path | None = None) -> Path:
    """Writes the markdown, every figure, and the head of a README; returns the markdown's path."""
    for name, plot in drawn.figures.items():
        figure = plot.draw(TEXT if TEXT in plot.widths else max(plot.widths))
        write_beside(folder.figures / name, partial(save_figure, figure, form="png", dpi=SCREEN_DPI))
    for path, text in _texts(drawn, folder, readme).items():
        write_text(path, text)
    return folder.document


def out_of_date(drawn: Document, folder: StudyFolder, readme: Path | None = None) -> list[str]:
    """A sentence for each file that differs from the one that would be written; of figures, for a missing one."""
    found = []
    for path, text in _texts(drawn, folder, readme).items():
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        if written != text:
            changes = difflib.unified_diff(written.splitlines(), text.splitlines(), "written", "now", "", "", 0, "")
            found.append("\n".join([f"{_place(path)} is out of date:", *islice(changes, SHOWN_LINES)]))
    figures = [folder.figures / name for name in drawn.figures]
    return found + [f"{_place(figure)} is missing" for figure in figures if not figure.exists()]


def _texts(drawn: Document, folder: StudyFolder, readme: Path | None) -> dict[Path, str]:
    """The paths of the document and, if the study has a place in it, of the README, with their texts."""
    texts = {folder.document: drawn.text}
    if readme is not None and drawn.headline is not None:
        texts[readme] = placed(readme.read_text(encoding="utf-8"), folder.name, drawn.headline)
    return texts


def _place(path: Path) -> Path:
    return path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 if the document is written, or up to date; 1 if it is not."""
    given = parse("study", arguments)
    if given.name is None:
        print("\n".join(study_names()) or "there is no study yet; studies/README.md shows how to write one")
        return 0
    folder = study_folder(given.name)
    drawn = draw(folder, *given.overrides)
    if not given.check:
        print(f"study: {write(drawn, folder, README)}")
        return 0
    found = out_of_date(drawn, folder, README)
    print("\n".join([*found, f"run: {COMMAND} {folder.name}"] if found else ["up to date"]))
    return 1 if found else 0
