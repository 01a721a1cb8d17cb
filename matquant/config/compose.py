"""Hydra, and nothing else: command lines become plain values, a sweep becomes command lines.

Every mistake that Hydra finds in a command line or a file under conf/ leaves here as one sentence with a remedy.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from matquant.checkout import PROJECT, study_folders
from matquant.errors import UserError

CONF = PROJECT / "conf"


class StudiesSearchPath(SearchPathPlugin):
    """Lets Hydra find the files of every study too, studies/NAME/conf: to compose, for --help and for completion."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders()[1:]:
            search_path.append("studies", f"file://{folder}")


Plugins.instance().register(StudiesSearchPath)


def config_folders() -> list[Path]:
    """The folders of configuration: conf/, then the conf/ of every study."""
    return [CONF, *(folder / "conf" for folder in study_folders())]


def _is_group(axis: str) -> bool:
    return any((folder / axis).is_dir() for folder in config_folders())


def compose(overrides: Sequence[str]) -> Mapping[str, Any]:
    """The plain values of a command line; UserError, in one line, for one that does not compose."""
    return _composed(tuple(overrides)).values


class _Composed(NamedTuple):
    values: Mapping[str, Any]
    refers: bool
    """True if a value is taken from another place of the configuration."""


@cache
def _composed(overrides: tuple[str, ...]) -> _Composed:
    """One composition by Hydra, about 0.1 s; a file under conf/ is read once."""
    try:
        _require_choices(overrides)
        if GlobalHydra.instance().is_initialized():
            config = hydra.compose("config", overrides=list(overrides))
        else:
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                config = hydra.compose("config", overrides=list(overrides))
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        unresolved = OmegaConf.to_container(config, resolve=False)
    except OverrideParseException as error:
        raise UserError(f"'{error.override}' cannot be read: {_one_line(error, overrides)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, overrides)) from error
    assert isinstance(values, dict)
    return _Composed({str(key): value for key, value in values.items()}, "${" in json.dumps(unresolved))


def check_line(arguments: Sequence[str]) -> None:
    """Refuses, in one line, what Hydra would answer by its usage or a traceback: flags, overrides, unknown choices.

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
    if given.hydra_help or given.shell_completion:
        return
    for overrides in sweep_points(given.overrides) if given.multirun else [given.overrides]:
        try:
            compose(overrides)
        except UserError as error:
            if not isinstance(error.__cause__, MissingMandatoryValue):
                raise


def _require_choices(overrides: Sequence[str]) -> None:
    """Refuses, of an axis, what cannot be the name of a file: Hydra would end in a TypeError."""
    for one in OverridesParser.create().parse_overrides([text for text in overrides if _is_group(key_of(text))]):
        value = None if one.is_sweep_override() else one.value()
        names = value if isinstance(value, list) else [value]
        if not (one.is_delete() or one.is_sweep_override() or all(isinstance(name, (str, dict)) for name in names)):
            axis = one.key_or_group
            raise UserError(f"{one.input_line} is not a choice of {axis}; choices: {', '.join(choices(axis))}")


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
    choices_made = tuple(value for value in values if _is_group(value.partition("=")[0]))
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
        axes = {axis: _listed(value) for axis, value in product.items()}
        kept = {
            axis: [value for value in values if value in _listed(only.get(axis, values))]
            for axis, values in axes.items()
        }
        if not all(kept.values()):
            continue
        swept = {axis: values for axis, values in kept.items() if axis not in typed}
        for values in itertools.product(*swept.values()):
            yield [f"{axis}={value}" for axis, value in zip(swept, values, strict=True)]


def choices_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """All choices of each axis of an experiment's cells."""
    choices: dict[str, set[str]] = {}
    for product in cells:
        for axis, value in product.items():
            choices.setdefault(axis, set()).update(map(str, _listed(value)))
    return choices


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's several lines as one sentence with a remedy."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], overrides)
    if match := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        group, name = _as_typed(match[1], match[2], overrides)
        near = difflib.get_close_matches(name, choices(group), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        given = f"{group}={name} does not exist" if name else f"{group}= has no value"
        return f"{given}; {hint}choices: {', '.join(choices(group))}"
    if match := re.search(r"Multiple values for (\S+)\. To override .*: (\S+)'", text):
        return f"{match[1]} has a choice already; leave out the plus and write {match[1]}={match[2]}"
    if match := re.search(r"full_key: (\S+)", text) if "Missing mandatory value" in text else None:
        return f"{match[1]} is required with these choices; add {match[1]}=VALUE"
    if "sweep" in text.lower() or "Ambiguous value for argument" in text:
        return f"{text.splitlines()[0]}: a comma-separated sweep needs --multirun, or -m; a list is written [a,b]"
    return " ".join(text.split()).partition(" See https")[0]


def _as_typed(folder: str, name: str, overrides: Sequence[str]) -> tuple[str, str]:
    """The axis and its choice out of a file's place: experiment/smollm2/x is typed experiment=smollm2/x."""
    typed = (override.lstrip("+").partition("=") for override in overrides)
    pairs = ((axis, choice) for axis, _, choice in typed)
    return next((pair for pair in pairs if "/".join(pair) == f"{folder}/{name}"), (folder, name))


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """A sentence about a key that the choices of a command line do not have."""
    chosen = [override for override in overrides if (CONF / key_of(override)).is_dir() and key_of(override) != key]
    values = compose(chosen)
    if isinstance(values.get(key), Mapping):
        return f"{key} holds values of its own; set one of them with +{key}.NAME=VALUE"
    known = [*_leaves(values), *(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")]
    near = difflib.get_close_matches(key, list(dict.fromkeys(known)), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no key {key} in this configuration{hint} (python run.py --cfg job prints all keys)"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")


def sweep_points(overrides: Sequence[str]) -> list[list[str]]:
    """The command lines that Hydra's multirun makes of `base=minmax,omniquant bits=int2,matquant`."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(_one_line(error, overrides)) from error
    return [list(point) for point in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


def choices(group: str) -> list[str]:
    """The files of one axis under conf/, and those of studies."""
    groups = [folder / group for folder in config_folders()]
    return sorted(str(path.relative_to(root).with_suffix("")) for root in groups for path in root.rglob("*.yaml"))
