"""Files of a report: where they lie, and how they are written, beside and then renamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.page.parts import Download
from matquant.runs.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    folder: Path

    @property
    def csv(self) -> Path:
        return self.folder / "table.csv"

    @property
    def comparisons(self) -> Path:
        return self.folder / "comparisons.csv"

    @property
    def results(self) -> Path:
        """Every result with its protocol and where it comes from."""
        return self.folder / "results.csv"

    @property
    def notebook(self) -> Path:
        return self.folder / "report.ipynb"

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    @property
    def record(self) -> Path:
        """The record of what the other files were drawn from (`analysis.report.unchanged`)."""
        return self.folder / ".drawn.json"

    def figure(self, name: str, form: str) -> Path:
        """The file of a figure; `form` is svg, pdf or png."""
        return self.folder / f"{name}.{form}"


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text, atomically; returns where."""

    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    write_beside(path, write)
    return path


def downloads_of(files: Iterable[Path]) -> list[Download]:
    """Files as the downloads of a page."""
    return [Download(path.name, path.read_bytes()) for path in files]


def csv_of(numbers: pd.DataFrame) -> str:
    """Numbers as CSV; the notes of a row, and the names of its best numbers, as one text."""
    lists = [name for name in ("notes", "best") if len(numbers) and name in numbers and numbers[name].dtype == object]
    return numbers.assign(**{name: numbers[name].map("; ".join) for name in lists}).to_csv(index=False)
