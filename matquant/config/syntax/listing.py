"""Choices of an axis with one line about each: the answer to `experiment=`, `base=` and `experiment=grids/`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matquant.config.syntax.files import choices, config_folders, is_group
from matquant.config.syntax.grammar import RUN


class Choice(NamedTuple):
    """A choice of an axis, and the line that its file says about it."""

    name: str
    line: str


def listing(words: Sequence[str], width: int | None = None) -> str | None:
    """The choices that a command line asks for by an axis without a value; None where it asks for none.

    `experiment=grids/` asks for those of a folder.  Lines are cut at the width, by default that of the terminal.
    """
    for word in words:
        axis, equals, begun = word.lstrip("+").partition("=")
        asks = bool(equals) and is_group(axis) and (not begun or begun.endswith("/"))
        found = [one for one in described(axis) if one.name.startswith(begun)] if asks else []
        if found:
            return _table(axis, found, shutil.get_terminal_size((10_000, 0)).columns if width is None else width)
    return None


def _table(axis: str, found: Sequence[Choice], width: int) -> str:
    names = max(len(f"{axis}={one.name}") for one in found)
    lines = (f"{f'{axis}={one.name}':{names}}   {one.line}" for one in found)
    cut = (line if len(line) <= width else f"{line[: max(width - 1, names)]}…" for line in lines)
    run = RUN.removesuffix(" -m")
    return "\n".join([*cut, "", f"{run} {axis}={found[0].name} runs one; matquant launch takes the same words"])


def described(axis: str) -> list[Choice]:
    """Every choice of an axis with its line, by name."""
    return [Choice(name, line(file_of(axis, name))) for name in choices(axis)]


def file_of(axis: str, name: str) -> Path:
    """The file of a choice, under conf/ or in a study."""
    paths = (folder / axis / f"{name}.yaml" for folder in config_folders())
    return next(path for path in paths if path.is_file())


def line(path: Path) -> str:
    """The claim of an experiment, or the first sentence of another file; an experiment that shares the claim of
    another one is told by its title."""
    comment = opening(path)
    claim = re.search(r"Claim: (.+?)(?= Command: | Cost: | Expected: |$)", comment)
    if claim and not claim[1].startswith("see "):
        return re.sub(r"^none[^;]*; ", "", claim[1])
    title = comment.partition(" Claim: ")[0]
    return title if claim else re.split(r"[.;] +(?=[A-Z])", title)[0].rstrip(".")


def opening(path: Path) -> str:
    """The comment at the top of a file, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next((number for number, text in enumerate(lines) if not text.startswith("# @package")), len(lines))
    stop = next((number for number, text in enumerate(lines[start:], start) if not text.startswith("#")), len(lines))
    return re.sub(r"\s+", " ", " ".join(text.lstrip("# ") for text in lines[start:stop])).strip()
