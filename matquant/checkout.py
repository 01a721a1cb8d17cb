"""The clone that this library is imported from, and the folders in it that several packages use."""

from __future__ import annotations

import shlex
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
STUDIES = PROJECT / "studies"


def study_folders() -> list[Path]:
    """The folders below studies/, one a study."""
    return sorted(path for path in STUDIES.iterdir() if (path / "conf").is_dir()) if STUDIES.is_dir() else []


def left_in_the_clone(**folders: Path) -> str | None:
    """A sentence for who types in another folder than the clone's: where runs and results are looked for.

    None where that folder has some of them, or the clone has none.
    """
    relative = {name: path for name, path in folders.items() if not path.is_absolute()}
    in_clone = {name: STUDIES.parent / path for name, path in relative.items() if _holds_some(STUDIES.parent / path)}
    if not in_clone or any(map(_holds_some, relative.values())):
        return None
    typed = " ".join(f"paths.{name}={shlex.quote(str(path))}" for name, path in in_clone.items())
    return f"looking for {' and '.join(relative)} in {Path.cwd()}; the clone's are read with {typed}"


def _holds_some(folder: Path) -> bool:
    """True for a folder with something in it: a check whether one can be written leaves an empty one."""
    return folder.is_dir() and any(folder.iterdir())


def from_anywhere(path: Path) -> Path:
    """A path as a study's files spell it, from the clone's root, so that it is the same from every working directory.

    Every other path is left as it is, and so is this one where it is right already.
    """
    is_of_study = path.parts[:1] == (STUDIES.name,)
    return STUDIES.parent / path if is_of_study and Path.cwd() != STUDIES.parent else path
