"""Files of a report: written beside, then renamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matquant.runs import write_beside

if TYPE_CHECKING:
    from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, atomically."""

    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    write_beside(path, write)
