"""A path that a person gives, with the home folder for its `~`: a shell leaves `paths.runs=~/runs` as it is."""

from __future__ import annotations

from pathlib import Path

from matquant.errors import UserError


def at_home(path: str | Path) -> Path:
    """The path with `~` read as the home folder; UserError where nobody has such a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no user of that name, or no HOME
        raise UserError(
            f"no home folder {Path(path).parts[0]} is known here, so {path} is nowhere; write the path in full"
        ) from error
