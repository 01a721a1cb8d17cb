"""The points of a multirun before it starts, and when one begins: what cannot be run is named, and alone left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evaluation.objective import are_better_high
from evaluation.planning import preflight
from matquant.command.multirun import Multirun
from matquant.config.study import Study, load_study
from matquant.config.sweep import Point, Points, is_of_hydra, load_points, varied
from matquant.config.sweeper import load_sweeper, sample_points, whole_numbers
from matquant.config.syntax.grammar import is_searched, parsed_override
from matquant.config.syntax.overrides import for_hydra, key_of, sweep_points
from matquant.errors import UserError


def lead(overrides: Sequence[str]) -> Multirun:
    """The multirun of a command line; UserError if that is a mistake, or if none of its points can be run."""
    keys = {key_of(word) for word in overrides if (parsed := parsed_override(word)) and parsed.is_sweep_override()}
    if "objective" in keys:
        raise UserError("objective is what a sweep is about, and is not swept; several are one list: objective=[a,b]")
    return _search(overrides, keys) if is_searched(overrides) else _product(overrides, keys)


def _product(overrides: Sequence[str], keys: set[str]) -> Multirun:
    """A multirun whose points are known: all are checked before the first begins."""
    points = [_plain(point) for point in sweep_points(for_hydra(overrides))]
    composed = load_points(points)
    known = checked(composed)
    studies = {tuple(point): study for point, study in known.studies}
    refused = {tuple(point): error for point, error in known.refused}

    def admit(point: Point) -> Study:
        if (error := refused.get(tuple(point))) is not None:
            raise error
        return studies.get(tuple(point)) or _checked_study(point)

    leader = _leader(admit, keys or {key_of(word) for word in varied(points)}, len(points), known.studies[0][1])
    leader.composed = list(composed.studies)
    leader.announce(known.refused)
    return leader


def _search(overrides: Sequence[str], keys: set[str]) -> Multirun:
    """A multirun whose points a sweeper will draw: some are checked now, and each of them when it begins."""
    sweeper = load_sweeper(overrides)
    whole_numbers(overrides)
    known = checked(load_points([_plain(point) for point in sample_points(overrides)]))
    study = known.studies[0][1]
    sweeper.check(list(map(str, study.goals)), are_better_high(study))

    leader = _leader(_checked_study, keys, sweeper.num_points, study)
    leader.is_drawn = True
    return leader


def _checked_study(point: Point) -> Study:
    study = load_study(point)
    preflight.check([study])
    return study


def _leader(admit: Callable[[Point], Study], keys: set[str], total: int | None, study: Study) -> Multirun:
    return Multirun(admit, frozenset(keys), total, tuple(map(str, study.goals)), tuple(are_better_high(study)))


def _plain(point: Point) -> list[str]:
    """The words of a point without those for Hydra, which its sweepers do not pass on either."""
    return [word for word in point if not is_of_hydra(word)]


def checked(points: Points) -> Points:
    """The points that can be run, and every refused one with its reason; UserError if none can be run.

    What all points share, such as room on the disk, refuses all of them.
    """
    try:
        preflight.check([study for _, study in points.studies])
        return points
    except UserError:
        if len(points.studies) == 1 and not points.refused:
            raise
    runnable: list[tuple[Point, Study]] = []
    refused = list(points.refused)
    for point, study in points.studies:
        try:
            preflight.check([study])
        except UserError as error:
            refused.append((point, error))
        else:
            runnable.append((point, study))
    if not runnable:
        raise refused[0][1]
    preflight.check([study for _, study in runnable])
    return Points(runnable, refused)
