"""Hydra, and nothing else: command lines become plain values, a sweep becomes command lines.

Every mistake that Hydra finds in a command line or a file under conf/ leaves here as one sentence with a remedy.
"""

from __future__ import annotations

import itertools
import json
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from matquant.config.syntax.files import CONF, config_folders, is_group
from matquant.config.syntax.files import choices as choices
from matquant.config.syntax.grammar import as_typed
from matquant.config.syntax.overrides import key_of, understood
from matquant.config.syntax.overrides import sweep_points as sweep_points
from matquant.config.syntax.sentences import in_one_line
from matquant.errors import UserError


class StudiesSearchPath(SearchPathPlugin):
    """Lets Hydra find the files of every study too, studies/NAME/conf: to compose, for --help and for completion."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders()[1:]:
            search_path.append("studies", f"file://{folder}")


Plugins.instance().register(StudiesSearchPath)
# The plugin of submitit has schemas of the same names as our files, and Hydra would warn that it matches the two.
for _name in ("submitit_local", "submitit_slurm"):
    if (CONF / f"hydra/launcher/{_name}.yaml").exists():
        ConfigStore.instance().repo.get("hydra", {}).get("launcher", {}).pop(f"{_name}.yaml", None)


def compose(overrides: Sequence[str]) -> Mapping[str, Any]:
    """The plain values of a command line; UserError, in one line, for one that does not compose."""
    return _composed(tuple(understood(overrides))).values


class _Composed(NamedTuple):
    values: Mapping[str, Any]
    refers: bool
    """True if a value is taken from another place of the configuration."""


@cache
def _composed(overrides: tuple[str, ...]) -> _Composed:
    """One composition by Hydra, about 0.1 s; a file under conf/ is read once."""
    try:
        config = _by_hydra(overrides)
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        unresolved = OmegaConf.to_container(config, resolve=False)
    except OverrideParseException as error:
        raise UserError(
            f"'{error.override}' cannot be read: {in_one_line(error, overrides, _as_far_as_given)}"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(in_one_line(error, overrides, _as_far_as_given)) from error
    assert isinstance(values, dict)
    return _Composed({str(key): value for key, value in values.items()}, "${" in json.dumps(unresolved))


def compose_hydra(overrides: Sequence[str]) -> Any:
    """Hydra's own part of a configuration: its sweeper and its launcher."""
    try:
        return _by_hydra(overrides, whole=True).hydra
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(in_one_line(error, overrides, _as_far_as_given)) from error


def _by_hydra(overrides: Sequence[str], *, whole: bool = False) -> Any:
    if GlobalHydra.instance().is_initialized():
        return hydra.compose("config", overrides=list(overrides), return_hydra_config=whole)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides), return_hydra_config=whole)


def _as_far_as_given(overrides: Sequence[str]) -> Mapping[str, Any]:
    """The values of a command line that may lack some; none for one that does not compose."""
    try:
        values = OmegaConf.to_container(_by_hydra(understood(overrides)))
    except (HydraException, OmegaConfBaseException):
        return {}
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def check_line(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra reads them; refuses, in one line, what it would answer by its usage or a traceback.

    A value that is still required may be missing: the line may ask for help or for the composed configuration.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        given, unknown = parser.parse_known_args(list(arguments))
    except ArgumentError as error:
        raise UserError(f"{error}; python run.py --hydra-help lists the options") from error
    if unknown:
        raise UserError(
            f"unrecognized arguments: {' '.join(unknown)}; python run.py --hydra-help lists the options, "
            "which stand before or behind all overrides"
        )
    for option in ("config_name", "config_path", "config_dir"):
        if getattr(given, option):
            raise UserError(
                f"--{option.replace('_', '-')} is not read: every command reads conf/ and studies/*/conf/; "
                "put your files there"
            )
    if given.hydra_help or given.shell_completion:
        return list(arguments)
    if given.multirun and (given.cfg or given.info):
        raise UserError("--cfg and --info show one configuration, and --multirun has several; leave out -m")
    if given.multirun and not given.help:
        raise UserError(f"a multirun takes overrides and no option but -m; leave out {_other_options(arguments)}")
    if not given.multirun:
        try:
            compose(given.overrides)
        except UserError as error:
            if not isinstance(error.__cause__, MissingMandatoryValue):
                raise
    typed = {text: understood([text], swept=given.multirun) for text in given.overrides}
    return [word for argument in arguments for word in typed.get(argument, [argument])]


def _other_options(arguments: Sequence[str]) -> str:
    return " ".join(word for word in arguments if word.startswith("-") and word not in ("-m", "--multirun"))


def compose_points(overrides: Sequence[str], points: Sequence[Sequence[str]]) -> Iterable[Mapping[str, Any]]:
    """Every point of an experiment's product, put together from one composition for each value of each axis.

    Hydra takes a tenth of a second to compose and a study can have thousands of points, but few values on each axis.
    Values below one key (`base`, `base.num_steps`) are composed together.  The whole point is composed if two axes
    change the same key, or if a value refers to another one.
    """
    by_axis = [_by_axis(point) for point in points]
    num_values = len({(axis, tuple(values)) for axes in by_axis for axis, values in axes.items()})
    for point, axes in zip(points, by_axis, strict=True):
        changes = (
            [_changes(tuple(overrides), axis, tuple(values)) for axis, values in axes.items()]
            if num_values < len(points)
            else []
        )
        keys = [key for change in changes for key in change.values]
        if not changes or len(keys) > len(set(keys)) or any(change.refers for change in changes):
            yield compose([*overrides, *point])
        else:
            yield {**compose(overrides), **{key: value for change in changes for key, value in change.values.items()}}


def _by_axis(point: Sequence[str]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for override in point:
        axes.setdefault(key_of(override).partition(".")[0], []).append(override)
    return axes


@cache
def _changes(overrides: tuple[str, ...], axis: str, values: tuple[str, ...]) -> _Composed:
    """The changes by one value of an axis: the top-level keys that differ, and the axis's own in any case.

    Only choices of files are composed; a single value, of which there may be hundreds, is put in its place.
    """
    choices_made = tuple(value for value in values if is_group(value.partition("=")[0]))
    before, (after, refers) = compose(overrides), _composed((*overrides, *choices_made))
    changed = {key: value for key, value in after.items() if key == axis or before.get(key) != value}
    for value in values:
        if value not in choices_made:
            fits = _assign(changed, value)
            refers = refers or not fits
    # An axis whose values stand elsewhere (perplexity is below readout) may give way to, or override, another one.
    elsewhere = axis not in after
    return _Composed(changed, refers or elsewhere or not before.keys() <= after.keys())


def _assign(values: dict[str, Any], override: str) -> bool:
    """Sets a single value where it is; False, and nothing is set, where Hydra may do more or has to refuse it."""
    parsed = OverridesParser.create().parse_override(override)
    *path, last = parsed.key_or_group.split(".")
    if parsed.type != OverrideType.CHANGE or parsed.is_sweep_override() or "${" in override:
        return False
    place: Any = values
    for key in path:
        if not isinstance(place, dict) or key not in place:
            return False
        place[key] = dict(place[key]) if isinstance(place[key], dict) else place[key]  # not the cached one's
        place = place[key]
    if not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
        return False
    place[last] = parsed.value()
    return True


def points_of(cells: Sequence[Mapping[str, Any]], typed: set[str], only: Mapping[str, Any]) -> Iterable[list[str]]:
    """The override lists of a union of products: each entry of `cells` is the product over its lists.

    Of an axis that `only` names, its choices alone are kept.  An axis that the user typed is not swept.
    """
    for product in cells:
        axes = {axis: _words(axis, value) for axis, value in product.items()}
        kept = {
            axis: [word for word in words if axis not in only or word in _words(axis, only[axis])]
            for axis, words in axes.items()
        }
        if not all(kept.values()):
            continue
        for point in itertools.product(*(words for axis, words in kept.items() if axis not in typed)):
            yield list(point)


def _words(axis: str, values: Any) -> list[str]:
    """The overrides of the choices of an axis, in the words that Hydra reads."""
    return understood([f"{axis}={as_typed(value)}" for value in _listed(values)])


def choices_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """All choices of each axis of an experiment's cells."""
    found: dict[str, set[str]] = {}
    for product in cells:
        for axis, value in product.items():
            found.setdefault(axis, set()).update(map(as_typed, _listed(value)))
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
