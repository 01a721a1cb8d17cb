"""The clone that this library is imported from, and the folders in it that several packages use."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
STUDIES = PROJECT / "studies"


def study_folders() -> list[Path]:
    """The folders below studies/, one a study."""
    return sorted(path for path in STUDIES.iterdir() if (path / "conf").is_dir()) if STUDIES.is_dir() else []
