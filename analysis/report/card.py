"""The model card of a nested folder, README.md, written from results."""

from __future__ import annotations

from pathlib import Path

from matquant.config.cell import Cell
from matquant.config.setup import Setup


def write_card(cell: Cell, setup: Setup, folder: Path) -> None:
    """Writes the card of a cell beside its codes."""
    text = f"""---
library_name: transformers
tags: [matquant, matryoshka-quantization]
---
# {cell.id}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
