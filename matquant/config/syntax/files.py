"""The files of configuration: an axis is a folder below conf/, and its choices are the files in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from matquant.checkout import PROJECT, study_folders

CONF = PROJECT / "conf"
SHOWN = 16
"""Choices that a sentence names; of an axis with more, it names the nearest few and the command that lists all."""


def config_folders() -> list[Path]:
    """The folders of configuration: conf/, then the conf/ of every study."""
    return [CONF, *(folder / "conf" for folder in study_folders())]


def is_group(axis: str) -> bool:
    return bool(axis) and any((folder / axis).is_dir() for folder in config_folders())


def axes() -> list[str]:
    """The axes of the study, by name."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")


def choices(group: str) -> list[str]:
    """The files of one axis under conf/, and those of studies."""
    groups = [folder / group for folder in config_folders()]
    return sorted(str(path.relative_to(root).with_suffix("")) for root in groups for path in root.rglob("*.yaml"))


def choices_in_words(group: str) -> str:
    """The choices of an axis as the end of a sentence: all of them, or the command that lists many."""
    found = choices(group)
    if not found:
        return "leave it out"
    if len(found) <= SHOWN:
        return f"choices: {', '.join(found)}"
    return f"python run.py {group}= lists its {len(found)} choices"


def nearest(typed: str, known: Iterable[str], *, cutoff: float) -> str:
    """The nearest few names as the middle of a sentence, 'did you mean a or b? '; empty if none is near."""
    names = list(dict.fromkeys(known))
    by_end = {re.split(r"[/.]", name)[-1]: name for name in reversed(names)}  # num_steps is base.num_steps
    end_of_typed = re.split(r"[/.]", typed)[-1]
    near = [
        *(name for name in names if _without_zeros(name) == _without_zeros(typed)),
        *difflib.get_close_matches(typed, names, n=3, cutoff=cutoff),
        *(by_end[end] for end in difflib.get_close_matches(end_of_typed, by_end, n=3, cutoff=0.8)),
    ]
    few = [name for name in dict.fromkeys(near) if name != typed][:3]
    return f"did you mean {' or '.join(few)}? " if few else ""


def _without_zeros(name: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.lower())
