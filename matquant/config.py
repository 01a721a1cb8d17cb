"""The one crossing from Hydra to typed values: overrides -> Cell and Setup, an experiment -> its list of cells.

YAML holds values; `cell.py` holds their meaning.  Every mistake in a command line or a config file ends here, as one
sentence, before anything is computed.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from matquant.cell import Cell, Setup
from matquant.errors import UserError
from matquant.notation import Slice, Term
from matquant.runs import PROJECT

CONF = PROJECT / "conf"
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Study:
    """What a command line asks for: a name, the cells, and how they are read."""

    name: str
    cells: tuple[Cell, ...]
    setup: Setup


def load_study(overrides: Sequence[str]) -> Study:
    """Composes a command line, such as `["experiment=demo", "model=tiny"]`, into typed values.

    The command line has the last word: an axis that it sets is not swept by the experiment's cells.
    Raises UserError, in one line, for anything that does not fit together.
    """
    config = _compose(overrides)
    typed = {_key(override) for override in overrides}
    points = list(_points(config.get("cells") or [], typed)) or [[]]
    cells = [_cell(_compose([*overrides, *point]) if point else config) for point in points]
    return Study(config["name"], tuple({cell.id: cell for cell in cells}.values()), _setup(config))


def sweep_points(overrides: Sequence[str]) -> list[list[str]]:
    """The command lines that Hydra's multirun makes of `base=minmax,omniquant bits=int2,matquant`."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(_one_line(error)) from error
    return [list(point) for point in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


def choices(group: str) -> list[str]:
    """The files of one axis under conf/."""
    files = (CONF / group).rglob("*.yaml")
    return sorted(str(path.relative_to(CONF / group).with_suffix("")) for path in files)


# --- composing -------------------------------------------------------------------------------------------------------


def _compose(overrides: Sequence[str]) -> Mapping[str, Any]:
    return _composed(tuple(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> Mapping[str, Any]:
    """One composition by Hydra, about 60 ms; files under conf/ are taken as they are when first read."""
    try:
        if GlobalHydra.instance().is_initialized():
            config = compose("config", overrides=list(overrides))
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose("config", overrides=list(overrides))
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OverrideParseException as error:
        raise UserError(f"'{error.override}' cannot be read: {_one_line(error)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _points(cells: Sequence[Mapping[str, Any]], typed: set[str]) -> Iterable[list[str]]:
    """The override lists of a union of products: each entry of `cells` is the product over its lists."""
    for product in cells:
        axes = {
            axis: value if isinstance(value, list) else [value] for axis, value in product.items() if axis not in typed
        }
        for values in itertools.product(*axes.values()):
            yield [f"{axis}={value}" for axis, value in zip(axes, values, strict=True)]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _one_line(error: Exception) -> str:
    """Hydra's several lines as one sentence with a remedy."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1])
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = match.groups()
        near = difflib.get_close_matches(name, choices(group), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{group}={name} does not exist; {hint}choices: {', '.join(choices(group))}"
    if match := re.search(r"full_key: (\S+)", text) if "Missing mandatory value" in text else None:
        return f"{match[1]} is required with these choices; add {match[1]}=VALUE"
    if "sweep" in text.lower() or "Ambiguous value for argument" in text:
        return f"{text.splitlines()[0]}: a comma-separated sweep needs --multirun, or -m; a list is written [a,b]"
    return " ".join(text.split()).partition(" See https")[0]


def _unknown_key(key: str) -> str:
    known = [*_leaves(_compose([])), *(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no key {key} in this configuration{hint} (python run.py --cfg job prints all keys)"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")


# --- typing ----------------------------------------------------------------------------------------------------------


def _cell(config: Mapping[str, Any]) -> Cell:
    """The cell of one composed configuration.

    Facts that an algorithm does not look at are left out, so that `base=none` is one cell whatever `bits` says, and
    round to nearest does not depend on calibration text.
    """
    kind = config["base"]["kind"]
    facts: dict[str, Any] = {"model": config["model"], "base": config["base"]}
    if kind != "none":
        facts |= {"objective": _objective(config), "grid": config["grid"], "scope": config["scope"]}
    if kind == "minmax":
        # Nothing is trained, so only the parent's width matters: bits=matquant and bits=int8 are the same codes.
        parent_bits = facts["objective"]["parent_bits"]
        facts["objective"] = {"parent_bits": parent_bits, "terms": {str(Slice(parent_bits)): 1.0}}
    if kind not in ("none", "minmax"):
        facts |= {"data": config["data"], "seed": config["seed"]}
    return _typed(Cell, facts)


def _objective(config: Mapping[str, Any]) -> dict[str, Any]:
    """bits x weights x distill x extra_bit -> terms.

    Without named weights (weights=uniform) every width weighs 1.  An explicit baseline has one width, so it has neither
    a teacher nor an overflow bucket, whatever the other axes say: they can be swept together.
    """
    parent_bits, widths = config["bits"]["parent_bits"], [_width(text) for text in config["bits"]["widths"]]
    weights = {_width(text): weight for text, weight in config["weights"].items()}
    trained = ", ".join(map(str, widths))
    for width in weights:
        if width not in widths:
            raise UserError(
                f"weights.{width}={weights[width]} weighs a width that is not trained (bits trains {trained}); "
                "drop it, or choose weights=uniform"
            )
    if weights and (forgotten := [width for width in widths if width not in weights]):
        raise UserError(
            f"weights give nothing for {forgotten[0]}, which bits trains ({trained}); add weights.{forgotten[0]}"
        )
    extra = bool(config["extra_bit"])
    terms = {str(_keeping(width, parent_bits, extra=extra)): weights.get(width, 1.0) for width in widths}
    for text in config["distill"]["terms"] if len(widths) > 1 else []:
        term = Term.parse(text)
        for part in (term.slice, term.teacher):
            if part not in widths:
                raise UserError(f"distill has a term {text}, but {part} is not trained (bits trains {trained})")
        student = _keeping(term.slice, parent_bits, extra=extra)
        assert term.teacher is not None
        # Equally weighted with the ground truth of the same width (Section 5.2).
        terms[str(Term(student, teacher=term.teacher))] = weights.get(term.slice, 1.0)
        if config["distill"]["replaces_ground_truth"]:
            terms.pop(str(student), None)
    return {"parent_bits": parent_bits, "terms": terms}


def _keeping(width: Slice, parent_bits: int, *, extra: bool) -> Slice:
    """The slice with its overflow bucket, where the extra bit is on and the slice is narrower than its parent."""
    return Slice(width.bits, extra_precision=extra and width.bits < parent_bits)


def _width(text: Any) -> Slice:
    try:
        return Slice.parse(text)
    except ValueError as error:
        raise UserError(f"bits and weights: {error}") from error


def _setup(config: Mapping[str, Any]) -> Setup:
    facts = {key: config[key] for key in ("readout", "tracking", "paths", "device", "activations", "save_every_min")}
    return _typed(Setup, {**facts, "experiment": config["name"]})


def _typed(kind: type[Model], facts: Mapping[str, Any]) -> Model:
    try:
        return kind.model_validate(dict(facts))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not _is_tag(str(part), facts))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            raise UserError(f"there is no key {place}; remove it") from error
        given = "" if isinstance(first["input"], (dict, list, tuple)) or not place else f"={first['input']}"
        raise UserError(f"{place}{given}: {message}" if place else message) from error


def _is_tag(part: str, facts: Mapping[str, Any]) -> bool:
    """pydantic names the chosen member of a union in an error's place; a user typed no such word."""
    return any(isinstance(value, Mapping) and value.get("kind") == part for value in facts.values())
