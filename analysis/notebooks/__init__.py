"""Notebooks that come with the source: thin, each cell calls a function of `show` and shows what it returns.

May use every other room; nothing imports this one.
Must not come in: numbers that are worked out in a cell.
They are executed in place on studies/demo/results and studies/smollm2_135m/results, without a browser.
"""

from __future__ import annotations

from pathlib import Path

from matquant.checkout import study_folders

NOTEBOOKS = tuple(
    path for folder in (Path(__file__).parent, *study_folders()) for path in sorted(folder.glob("*.ipynb"))
)
"""The notebooks of this folder, then those of studies."""
