"""A sweep: the studies of its points, those that are refused, and the joint studies that its reports are of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from matquant.config.study import DEFAULT_NAME, SETUP, Study, load_study
from matquant.config.syntax.overrides import key_of, sweep_points, sweeps, understood
from matquant.errors import UserError

NAME = "sweep"
"""The name of the joint study of points that have none of their own."""
MAX_NAME = 60

Point = Sequence[str]
"""The command line of one point."""


@dataclass(frozen=True)
class Points:
    """The points of a sweep: those with a study, and those that do not compose, each with the reason."""

    studies: Sequence[tuple[Point, Study]]
    refused: Sequence[tuple[Point, UserError]] = ()


class Joint(NamedTuple):
    """A joint study, and a command line that it is the study of."""

    study: Study
    overrides: Sequence[str]


def load_points(points: Sequence[Point]) -> Points:
    """The studies of some points; UserError if every one of them is refused."""
    studies: list[tuple[Point, Study]] = []
    refused: list[tuple[Point, UserError]] = []
    for point in points:
        try:
            studies.append((point, load_study(point)))
        except UserError as error:
            refused.append((point, error))
    if not studies:
        raise refused[0][1]
    return Points(studies, refused)


def load_joint(overrides: Sequence[str]) -> tuple[list[Joint], Points]:
    """The studies that a command line reports on: one, or, for a sweep, the joint ones of its points."""
    typed = [word for word in overrides if not is_of_hydra(word)]
    if not sweeps(understood(typed, swept=True)):
        study = load_study(typed)
        return [Joint(study, typed)], Points([(typed, study)])
    points = load_points(sweep_points(typed))
    return joint(points.studies, typed), points


def is_of_hydra(word: str) -> bool:
    """True for an override of Hydra's own: of its sweeper, its launcher, its folders."""
    return key_of(word).startswith(("hydra.", "hydra/"))


def joint(points: Sequence[tuple[Point, Study]], typed: Sequence[str] | None = None) -> list[Joint]:
    """One study of all cells of some points; several where read-outs or folders differ, each with what is its own.

    Numbers of two read-outs do not belong in one table.  `typed`: the command line whose product the points are; None
    for points that a sweeper has drawn.
    """
    if len(points) == 1 and typed is not None and not sweeps(understood(typed, swept=True)):
        return [Joint(points[0][1], typed)]
    groups: dict[str, list[tuple[Point, Study]]] = {}
    for point, study in points:
        setup = study.setup
        groups.setdefault(f"{setup.readout.model_dump_json()} {setup.paths}", []).append((point, study))
    names = {study.name for _, study in points}
    name = names.pop() if len(names) == 1 and names != {DEFAULT_NAME} else NAME
    found: dict[str, Joint] = {}
    for number, group in enumerate(groups.values(), start=1):
        own = _own_name(group, points) if len(groups) > 1 else ""
        label = f"{name}-{own}"[:MAX_NAME].strip("-.") if own else name
        if label in found or (len(groups) > 1 and not own):
            label = f"{name}-{number}"
        line = typed if typed is not None and len(groups) == 1 else _line_of([point for point, _ in group], label)
        found[label] = Joint(_union([study for _, study in group], label), line)
    return list(found.values())


def _union(studies: Sequence[Study], name: str) -> Study:
    cells = {cell.id: cell for study in studies for cell in study.cells}
    setup = studies[0].setup.model_copy(update={"experiment": name})
    return replace(studies[0], name=name, cells=tuple(cells.values()), setup=setup)


def _own_name(group: Sequence[tuple[Point, Study]], points: Sequence[tuple[Point, Study]]) -> str:
    """The overrides that all points of a group have and not all points have, as a part of a folder's name."""
    shared = set(points[0][0]).intersection(*(point for point, _ in points))
    mine = set(group[0][0]).intersection(*(point for point, _ in group)) - shared
    own = sorted(word for word in mine if not word.startswith("paths."))
    return re.sub(r"[^\w.-]+", "-", "-".join(own), flags=re.ASCII).strip("-.")


def _line_of(points: Sequence[Point], name: str) -> list[str]:
    """The command line whose cells are these points: the words that all share, and the others as a list of cells."""
    different = varied(points)
    cells = [
        ", ".join(
            f"{key_of(word)}: {word.partition('=')[2]}"
            for word in point
            if word in different and key_of(word).partition(".")[0] not in SETUP
        )
        for point in points
    ]
    shared = [word for word in points[0] if word not in different and key_of(word) not in ("name", "objective")]
    listed = [f"cells=[{', '.join(f'{{{cell}}}' for cell in dict.fromkeys(cells))}]"] if any(cells) else []
    return [*shared, f"name={name}", *listed]


def varied(points: Sequence[Point]) -> set[str]:
    """The overrides that not all points share: the words that tell them apart."""
    if len(points) < 2:
        return set()
    shared = set(points[0]).intersection(*points[1:])
    return {word for point in points for word in point} - shared
