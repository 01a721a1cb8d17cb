"""The clone that this library is imported from, and the folders in it that several packages use."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
STUDIES = PROJECT / "studies"


def study_folders() -> list[Path]:
    """The folders below studies/, one a study."""
    return sorted(path for path in STUDIES.iterdir() if (path / "conf").is_dir()) if STUDIES.is_dir() else []


def from_anywhere(path: Path) -> Path:
    """A path as a study's files spell it, from the clone's root, so that it is the same from every working directory.

    Every other path is left as it is, and so is this one where it is right already.
    """
    is_of_study = path.parts[:1] == (STUDIES.name,)
    return STUDIES.parent / path if is_of_study and Path.cwd() != STUDIES.parent else path
